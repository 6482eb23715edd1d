"""Pictures behind a slider, with no kernel and no library: HTML with its data inside."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from lorabook.figures.notebook import Picture


def script(name: str) -> str:
    """What a page runs in an explorer: the script of that name, with what all of them share. Self-contained: it also runs in a notebook."""
    near, own = (files("lorabook.figures").joinpath(one).read_text(encoding="utf-8") for one in ("near.js", name))
    return f'((root) => {{\n"use strict";\n{near}\n{own}}})(document.currentScript.parentElement);'


@dataclass(frozen=True)
class Frame:
    """One position of a slider.

    Args:
        image: (height, width), black at 0 and white at 1; or a figure made by ``picture``.
        text: what to read beside it.
        alt: what the picture shows, in words; a figure brings its own.
    """

    image: ArrayLike | Picture
    text: str
    alt: str = ""


class PictureSlider:
    """Pictures behind a slider, moved with mouse, finger or arrow keys; without scripts the start picture and its text remain.

    Args:
        frames: one for each position.
        label: what the slider changes.
        start: the position shown first.

    Raises:
        ValueError: no frames, or a start outside them.
    """

    def __init__(self, frames: Sequence[Frame], label: str, start: int = 0) -> None:
        if not 0 <= start < len(frames):
            raise ValueError(f"start must be 0..{len(frames) - 1}, got {start}")
        self.frames = tuple(frames)
        self.label = label
        self.start = start

    def _repr_html_(self) -> str:
        data = [{"picture": _drawn(frame), "text": frame.text} for frame in self.frames]
        first = data[self.start]
        # "<" would end the script element if it stood in a text.
        packed = json.dumps(data).replace("<", "\\u003c")
        return f"""<div class="lora-explorer">
<div class="view">{first["picture"]}</div>
<div class="controls" hidden><label>{html.escape(self.label)}
<input type="range" min="0" max="{len(data) - 1}" step="1" value="{self.start}"></label></div>
<output>{html.escape(first["text"])}</output>
<script type="application/json" data-chart="">{packed}</script>
<script>{script("slider.js")}</script>
</div>"""

    def __repr__(self) -> str:
        return f"[explorer: {self.label}, {len(self.frames)} positions]"


def _drawn(frame: Frame) -> str:
    """The frame's picture as HTML."""
    if isinstance(frame.image, Picture):
        return frame.image.svg
    height, width = np.asarray(frame.image).shape
    return f'<img src="{as_webp(frame.image)}" alt="{html.escape(frame.alt)}" width="{width}" height="{height}">'


def as_webp(image: ArrayLike) -> str:
    """A picture as a data address."""
    grey = (np.clip(np.asarray(image, dtype=np.float64), 0, 1) * 255).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="WEBP", quality=60, method=6)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
