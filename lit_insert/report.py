"""A report that is one HTML file: no scripts, no other files, no hosts."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.images import to_pil

if TYPE_CHECKING:
    from torch import Tensor

_CSS = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5b6168;--line:#d9dce0;--page:#fff;--box:#f5f6f8;
--c0:#1f6fb4;--c1:#c8501e;--c2:#2b8a3e;--c3:#8a4fb5;--c4:#b0870b;--c5:#c2417c}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--soft:#a0a7ae;--line:#3a3f45;--page:#16181b;
--box:#1f2226;--c0:#6cb2f0;--c1:#f0925f;--c2:#6fcf86;--c3:#c59cee;--c4:#e0be4d;--c5:#f08fbc}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:70rem;
margin:2rem auto;padding:0 1.25rem}
h1{font-size:1.7rem;line-height:1.25;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .6rem}
p{margin:.6rem 0;max-width:48rem}.sub{color:var(--soft);margin-top:.3rem}
.wide{overflow-x:auto;margin:.8rem 0}
.wide:has(table.pictures){width:max-content;min-width:100%;max-width:94vw;margin-left:50%;transform:translateX(-50%)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .8rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:middle}
th{font-weight:600;color:var(--soft);font-size:.88rem}td.num,th.num{text-align:right}
table.pictures th,table.pictures td{padding:.3rem .45rem;text-align:center;border:0;font-size:.88rem}
img{display:block;margin:auto;border-radius:3px}img.small{image-rendering:pixelated}
svg{display:block;max-width:100%;height:auto;background:var(--box);border-radius:6px}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
""".strip()

_COLOURS = 6
_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 46


class Report:
    """Collects blocks and writes them as one self-contained page, readable in light and dark.

    All texts are escaped; every method returns the report, so that calls can be chained.

    Args:
        title: Heading of the page and name of its tab.
        subtitle: A line below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._blocks = [f"<h1>{escape(title)}</h1>"]
        if subtitle:
            self._blocks.append(f'<p class="sub">{escape(subtitle)}</p>')

    def heading(self, text: str) -> Self:
        """Start a section."""
        self._blocks.append(f"<h2>{escape(text)}</h2>")
        return self

    def text(self, text: str) -> Self:
        """Add paragraphs; an empty line parts them."""
        for paragraph in text.strip().split("\n\n"):
            self._blocks.append(f"<p>{escape(paragraph)}</p>")
        return self

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Self:
        """Add a table; numbers are right-aligned, floats get four significant digits, ``None`` a dash."""
        numeric = [
            bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows if i < len(row))
            for i in range(len(header))
        ]

        def cell(tag: str, index: int, text: str) -> str:
            kind = ' class="num"' if index < len(numeric) and numeric[index] else ""
            return f"<{tag}{kind}>{escape(text)}</{tag}>"

        head = "".join(cell("th", i, str(h)) for i, h in enumerate(header))
        body = "".join(
            "<tr>" + "".join(cell("td", i, _number(value)) for i, value in enumerate(row)) + "</tr>" for row in rows
        )
        self._blocks.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )
        return self

    def images(
        self,
        rows: "Sequence[Sequence[Image.Image | Tensor | str | None]]",
        header: Sequence[str] = (),
        cell_px: int = 128,
    ) -> Self:
        """Add rows of pictures.

        Args:
            rows: PIL pictures, tensors as `lit_insert.images.to_pil` takes, texts, or ``None`` for a gap.
            header: One text a column.
            cell_px: Longer side of a shown picture; larger ones are shrunk to twice that first.
        """
        head = "".join(f"<th>{escape(str(h))}</th>" for h in header)
        lines = []
        for row in rows:
            cells = []
            for column, item in enumerate(row):
                name = str(header[column]) if column < len(header) else ""
                cells.append(f"<td>{_picture(item, name, cell_px)}</td>")
            lines.append("<tr>" + "".join(cells) + "</tr>")
        top = f"<thead><tr>{head}</tr></thead>" if header else ""
        self._blocks.append(
            f'<div class="wide"><table class="pictures">{top}<tbody>{"".join(lines)}</tbody></table></div>'
        )
        return self

    def curve(
        self,
        series: Mapping[str, Sequence[tuple[float, float]]],
        xlabel: str = "",
        ylabel: str = "",
        *,
        log_y: bool = False,
    ) -> Self:
        """Add a line chart as inline SVG.

        Args:
            series: Name to points (x, y) in order of x; points that are not finite are left out.
            xlabel: Text below the axis.
            ylabel: Text beside the axis.
            log_y: Logarithmic y axis; points at or below zero are left out.
        """
        self._blocks.append(f'<div class="wide">{_chart(series, xlabel, ylabel, log_y)}</div>')
        return self

    def html(self) -> str:
        """The page as text."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{_CSS}</style></head>\n<body>\n"
            + "\n".join(self._blocks)
            + "\n</body></html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page atomically; returns its path."""
        path = Path(path)
        with atomic_file(path) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")
        return path


def _number(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return str(value)


def _picture(item: "Image.Image | Tensor | str | None", name: str, cell_px: int) -> str:
    if item is None:
        return ""
    if isinstance(item, str):
        return escape(item)
    picture = item if isinstance(item, Image.Image) else to_pil(item)
    if picture.mode not in ("RGB", "RGBA", "L"):
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    scale = cell_px / max(picture.size)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if scale < 0.5:
        picture = picture.resize((width * 2, height * 2), Image.Resampling.LANCZOS)
    photo = picture.mode == "RGB" and max(picture.size) > 160
    stream = io.BytesIO()
    if photo:
        picture.save(stream, "JPEG", quality=90, subsampling=0)
    else:
        picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    small = ' class="small"' if scale >= 2 else ""
    kind = "jpeg" if photo else "png"
    source = f"data:image/{kind};base64,{data}"
    return f'<img{small} width="{width}" height="{height}" alt="{escape(name)}" src="{source}">'


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.5 or 0.5
        return low - margin, high + margin
    return low, high


def _chart(series: Mapping[str, Sequence[tuple[float, float]]], xlabel: str, ylabel: str, log_y: bool) -> str:
    lines = {
        name: [
            (float(x), math.log10(y) if log_y else float(y))
            for x, y in points
            if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)
        ]
        for name, points in series.items()
    }
    if not any(lines.values()):
        return "<p>No points to draw.</p>"
    x0, x1 = _range([x for points in lines.values() for x, _ in points])
    y0, y1 = _range([y for points in lines.values() for _, y in points])
    legend = len(lines) > 1 or next(iter(lines)) != ""
    top = _TOP + (22 if legend else 0)
    plot_w, plot_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - top - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x0) / (x1 - x0) * plot_w, top + (1 - (y - y0) / (y1 - y0)) * plot_h

    parts = []
    for y in _ticks(y0, y1):
        _, py = at(x0, y)
        label = f"{10**y:.3g}" if log_y else f"{y:.4g}"
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{py:.1f}" y2="{py:.1f}" stroke="var(--line)"/>'
            f'<text x="{_LEFT - 8}" y="{py + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for x in _ticks(x0, x1, 6):
        px, _ = at(x, y0)
        parts.append(f'<text x="{px:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = _LEFT + plot_w / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(xlabel)}</text>')
    turn = f"translate(14 {top + plot_h / 2}) rotate(-90)"
    parts.append(f'<text transform="{turn}" text-anchor="middle">{escape(ylabel)}</text>')
    legend_x = float(_LEFT)
    for index, (name, points) in enumerate(lines.items()):
        colour = f"var(--c{index % _COLOURS})"
        if len(points) == 1:
            px, py = at(*points[0])
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>')
        elif points:
            path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
            dash = ' stroke-dasharray="5 4"' if index >= _COLOURS else ""
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
                f'stroke-linejoin="round"{dash}/>'
            )
        if legend:
            parts.append(f'<rect x="{legend_x:.0f}" y="12" width="14" height="4" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{legend_x + 19:.0f}" y="18">{escape(name)}</text>')
            legend_x += 34 + 6.6 * len(name)
    label = escape(f"{', '.join(lines)}: {ylabel} over {xlabel}")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
