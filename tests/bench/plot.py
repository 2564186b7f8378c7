"""Bars as an SVG, for the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

COLOURS: Final = ("#1b6ca8", "#5ba3d0", "#b5651d", "#6b8e23", "#e0b080", "#b5c98a")
LEFT, TOP, ROW, GAP, WIDTH, PLOT = 190, 56, 13, 16, 880, 600


def bars(title: str, rows: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> str:
    """Horizontal bars: for each of ``rows`` one of every series, 0 or more, with its figure."""
    most = max(max(values) for values in series.values())
    group = ROW * len(series) + GAP
    height = TOP + group * len(rows) + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="18" font-size="14">{escape(title)}</text>',
    ]
    at = 8
    for name, colour in zip(series, COLOURS, strict=False):
        parts.append(f'<rect x="{at}" y="30" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{at + 14}" y="39">{escape(name)}</text>')
        at += 30 + 7 * len(name)
    for index, row in enumerate(rows):
        top = TOP + group * index
        middle = top + ROW * len(series) / 2 + 4
        parts.append(
            f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(row)}</text>'
        )
        for number, (values, colour) in enumerate(zip(series.values(), COLOURS, strict=False)):
            y, width = top + ROW * number, PLOT * values[index] / most
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{ROW - 2}" fill="{colour}"/>'
            )
            parts.append(
                f'<text x="{LEFT + width + 4:.1f}" y="{y + ROW - 3}">'
                f"{values[index]:.3g} {escape(unit)}</text>"
            )
    return "\n".join([*parts, "</svg>", ""])
