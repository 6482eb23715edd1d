"""Shows a Vega-Lite chart with its controls, without a kernel: on a page, from disk, and in a notebook. It knows no data."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

try:
    import altair as alt
except ImportError as error:
    raise ImportError("explorers are drawn with Altair: pip install altair") from error

from lorabook.figures.notebook import drawing_in_page_colors
from lorabook.figures.slider import script
from lorabook.figures.style import INK

# Set while the book is built, whose pages share one copy of Vega.
SITE = "LORABOOK_SITE"
_LABELS = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 300}
_LOOK = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "axis": {**_LABELS, "domainColor": INK, "tickColor": INK, "gridColor": INK, "gridOpacity": 0.15},
    "legend": _LABELS,
    "rule": {"color": INK},
    "text": {"color": INK, "fontSize": 12},
    "title": {"color": INK, "anchor": "start", "fontSize": 13, "fontWeight": "normal"},
    "view": {"stroke": None},
}
# The words are in the chart already, for those who see it.
_ONLY_HEARD = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap"
_CDN = "https://cdn.jsdelivr.net/npm"


class Explorer:
    """A chart that answers to sliders and menus, moved by mouse, finger or keyboard; without scripts its picture and words remain.

    Args:
        chart: whose parameters have controls bound to them.
        label: what there is to explore, in a few words.
        alt: what the chart shows at its start, in words.
        params: names of the parameters that choose the words.
        texts: the words for each choice, the parameters' values joined by "|". None reads them from the marks of the view named "said".
        start: the words at the start.
    """

    def __init__(
        self,
        chart: alt.TopLevelMixin,
        *,
        label: str,
        alt: str,
        start: str,
        params: tuple[str, ...] = (),
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.chart = chart
        self.label = label
        self.alt = " ".join(alt.split())
        self.params = params
        self.texts = texts
        self.start = start

    def spec(self) -> dict[str, object]:
        """The chart in Vega-Lite, in the book's look."""
        return {**self.chart.to_dict(), "description": self.alt, "config": _LOOK}

    def _repr_html_(self) -> str:
        spec = self.spec()
        data = {"spec": spec, "params": self.params, "texts": self.texts, "sources": _sources()}
        # "<" would end the script element if it stood in a text.
        packed = drawing_in_page_colors(json.dumps(_finite(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
        heard = "" if self.texts else f' style="{_ONLY_HEARD}"'
        return f"""<div class="lora-explorer lora-vega" role="group" style="position: relative" aria-label="{html.escape(self.label)}">
<div class="view">{self._picture(spec)}</div>
<div class="controls"></div>
<output aria-live="polite"{heard}>{html.escape(self.start)}</output>
<script type="application/json" data-chart="">{packed}</script>
<script>{script("explorer.js")}</script>
</div>"""

    def _picture(self, spec: dict[str, object]) -> str:
        """The start as a drawing, for a page whose scripts are off, and until they have run."""
        convert = _vl_convert()
        if convert is None:
            return ""
        svg = drawing_in_page_colors(convert.vegalite_to_svg(spec, vl_version=".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])))
        label = html.escape(self.alt, quote=True)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="max-width: 100%; height: auto" ', 1)

    def __repr__(self) -> str:
        return f"[explorer: {self.label}]"


def _finite(data: Any) -> Any:
    """The same, with null where a number is not finite, as Vega draws a gap: JSON has no NaN."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _vl_convert() -> Any | None:
    """vl-convert, which draws a chart without a browser and brings a copy of Vega; None where it is not installed."""
    return import_module("vl_convert") if find_spec("vl_convert") else None


def _sources() -> list[str]:
    """Where a notebook finds Vega: in itself where vl-convert brings it, else at the address from which Altair takes it."""
    if SITE in os.environ:
        return []
    convert = _vl_convert()
    if convert is not None:
        bundle = convert.javascript_bundle().encode()
        return ["data:text/javascript;base64," + base64.b64encode(bundle).decode("ascii")]
    packages = (f"vega@{alt.VEGA_VERSION}", f"vega-lite@{alt.VEGALITE_VERSION}", f"vega-embed@{alt.VEGAEMBED_VERSION}")
    return [f"{_CDN}/{package}" for package in packages]
