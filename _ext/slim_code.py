"""Coloured code in a page, in as few elements as its looks need.

Pygments gives every token an element; most look like the text around them, or like their neighbours.
"""

from __future__ import annotations

import re

from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES, Token


def looks(styles: tuple[str, ...]) -> dict[str, str]:
    """For each class of coloured code one that looks the same in these styles; "" for one that looks like the text around it."""
    named = [get_style_by_name(style) for style in styles]
    first = {str([style.style_for_token(Token.Text) for style in named]): ""}
    # Of what a console shows, the prompts are told from the rest: they are not copied.
    return {
        name: first.setdefault(str([style.style_for_token(token) for style in named]), name)
        for token, name in STANDARD_TYPES.items()
        if name and token not in Token.Generic
    }


def plain_code(page: str, look: dict[str, str]) -> str:
    """Coloured code in as few elements as its looks need."""

    def span(match: re.Match[str]) -> str:
        name = look.get(match[1], match[1])
        return f'<span class="{name}">{match[2]}</span>' if name else match[2]

    def block(match: re.Match[str]) -> str:
        code, before = re.sub(r'<span class="(\w+)">([^<]*)</span>', span, match[0].replace("<span></span>", "")), ""
        while before != code:
            before, code = code, re.sub(r'<span class="(\w+)">([^<]*)</span>( *)<span class="\1">', r'<span class="\1">\2\3', code)
        return code

    return re.sub(r'<div class="highlight"><pre>.*?</pre>', block, page, flags=re.DOTALL)
