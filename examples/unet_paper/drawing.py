"""Draw figures as SVG: shapes, text, and embedded slices as PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BLUE, PALE, RED, GREEN, YELLOW, GREY = "#2b7bba", "#b8c4d0", "#c8452f", "#3a9a5b", "#f5c518", "#667788"
GREYS = 8
"""Grey values are rounded to multiples of this, which halves the size of figures of noisy slices."""


def svg(width: int, height: int, *parts: str) -> str:
    """Compose a white figure of this size, in pixels, from its parts."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])


def words(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "black", size: int = 13) -> str:
    """Draw a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{text}</text>'


def rectangle(x: float, y: float, width: float, height: float, *, fill: str = "none", stroke: str = "none") -> str:
    """Draw a rectangle, filled or outlined."""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {shape} fill="{fill}" stroke="{stroke}" stroke-width="2"/>'


def line(points: NDArray[Any], *, colour: str, width: float = 1.5, arrow: bool = False) -> str:
    """Draw a line through points ``(n, 2)``, x before y, with a head at its end if it is an arrow."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawing = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    return drawing + head(points, colour) if arrow else drawing


def head(points: NDArray[Any], colour: str) -> str:
    """Draw the head of an arrow along the last two of the points ``(n, 2)``."""
    end, along = np.asarray(points[-1], float), np.subtract(points[-1], points[-2], dtype=float)
    along *= 6 / (np.hypot(*along) or 1)
    across = np.array([-along[1], along[0]]) / 2
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in (end, end - along + across, end - along - across))
    return f'<polygon points="{corners}" fill="{colour}"/>'


def picture(x: float, y: float, pixels: NDArray[np.uint8], scale: float = 1.0) -> str:
    """Embed grey pixels ``(y, x)`` or coloured ones ``(y, x, 3)``, ``uint8``, magnified by `scale`."""
    file = io.BytesIO()
    Image.fromarray(pixels // GREYS * GREYS if pixels.ndim == 2 else pixels).save(file, "png", optimize=True)
    height, width = pixels.shape[:2]
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width * scale:.1f}" height="{height * scale:.1f}"'
    return f'<image {place} href="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"/>'


def table(*rows: tuple[object, ...]) -> str:
    """Format rows as text in columns, the first one aligned to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(text.rstrip() for text in lines)
