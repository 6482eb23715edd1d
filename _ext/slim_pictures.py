"""Pictures and explorers in a page: files of their own where they are large, and nothing drawn twice."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import imagesize

PICTURES = "_images"
CHARTS = "_charts"
_LARGE = 2_000  # characters of a picture that is worth a request of its own


def size_pictures(page: str, folder: Path) -> str:
    """Pictures know their size before they come, and those below the first come when they are near."""
    seen = 0

    def sized(match: re.Match[str]) -> str:
        nonlocal seen
        tag, source = match[0], re.search(r'\bsrc="([^":?]+)', match[0])
        seen += 1
        if source and "width=" not in tag and (folder / source[1]).is_file():
            width, height = imagesize.get(folder / source[1])
            tag = tag.replace("<img", f'<img width="{round(width)}" height="{round(height)}"', 1) if width > 0 else tag
        if seen > 1 and "loading=" not in tag:
            tag = tag.replace("<img", '<img loading="lazy" decoding="async"', 1)
        return tag

    return re.sub(r"<img\b[^>]*>", sized, page)


def lift_pictures(page: str, root: str, folder: Path) -> str:
    """Large pictures that a page holds as data become files, so that the words need not wait for them.

    Those of an explorer stay in its chart: Vega asks for files in a way that a page opened from disk is refused.
    """

    def lifted(match: re.Match[str]) -> str:
        content = base64.b64decode(match["data"])
        path = Path(PICTURES, f"{hashlib.sha256(content).hexdigest()[:16]}.{match['kind']}")
        (folder / root / PICTURES).mkdir(parents=True, exist_ok=True)
        (folder / root / path).write_bytes(content)
        return f'{match["name"]}="{root}{path.as_posix()}"'

    data = rf"data:image/(?P<kind>png|webp);base64,(?P<data>[A-Za-z0-9+/\s]{{{_LARGE},}}=*)"
    return re.sub(rf'(?P<name>\b(?:src|href))="{data}"', lifted, page)


def lift_charts(page: str, root: str, folder: Path) -> str:
    """What explorers show becomes scripts of their own, fetched when the reader comes near."""

    def lifted(match: re.Match[str]) -> str:
        name = hashlib.sha256(match[1].encode()).hexdigest()[:16] + ".js"
        (folder / root / CHARTS).mkdir(parents=True, exist_ok=True)
        (folder / root / CHARTS / name).write_text(f'(window.lorabookCharts ||= {{}})["{name}"] = {match[1]};\n', encoding="utf-8")
        return f'<script type="application/json" data-chart="{root}{CHARTS}/{name}"></script>'

    return re.sub(r'<script type="application/json" data-chart="">(.*?)</script>', lifted, page, flags=re.DOTALL)


def share_glyphs(page: str) -> str:
    """Letters that several drawings of Matplotlib have in common are drawn once, in the first of them."""
    known: dict[str, str] = {}
    same: dict[str, str] = {}

    def once(match: re.Match[str]) -> str:
        own = match["id"]
        shared = known.setdefault(match[0].replace(own, own.partition("-")[2]), own)
        if shared == own:
            return match[0]
        same[own] = shared
        return ""

    page = re.sub(r'<path id="(?P<id>f[0-9a-f]{8}-[^"]+)" d="[^"]*" transform="scale\(0\.015625\)"/>', once, page)
    page = re.sub(r'href="#(f[0-9a-f]{8}-[^"]+)"', lambda match: f'href="#{same.get(match[1], match[1])}"', page)
    return page.replace("<defs></defs>", "")
