"""A learning curve as SVG: how loss and score went, step by step."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 60, 60, 30, 40
"""Room around the curves, in pixels; loss is written on the left, score on the right."""
ACROSS, UP = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
LOSS, SCORE, INK = "#2b7bba", "#d95f0e", "#444"
TICKS = 4

Curve = Sequence[tuple[float, float]]
"""Step and value, in the order of the steps."""


def learning_curve(loss: Curve, score: Curve) -> str:
    """The picture of a training; each curve has a scale of its own."""
    last = max((step for step, _ in (*loss, *score)), default=1) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<rect x="{LEFT}" y="{TOP}" width="{ACROSS}" height="{UP}" fill="none" stroke="#ccc"/>',
        f'<text x="{WIDTH / 2:g}" y="{HEIGHT - 8}" fill="{INK}" text-anchor="middle">steps, to {last:g}</text>',
        *_drawn(loss, last, LOSS, "loss", LEFT - 6, "end"),
        *_drawn(score, last, SCORE, "score", WIDTH - RIGHT + 6, "start"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _drawn(curve: Curve, last: float, colour: str, name: str, x: int, anchor: str) -> list[str]:
    """A curve, its scale and its name."""
    parts = [f'<text x="{x}" y="{TOP - 12}" fill="{colour}" text-anchor="{anchor}">{name}</text>']
    if not curve:
        return parts
    low, high = min(value for _, value in curve), max(value for _, value in curve)
    span = (high - low) or 1.0

    def place(step: float, value: float) -> tuple[float, float]:
        across = LEFT + ACROSS * step / last
        return across, HEIGHT - BOTTOM - UP * (value - low) / span

    points = " ".join("{:.1f},{:.1f}".format(*place(step, value)) for step, value in curve)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for tick in range(TICKS + 1):
        value = low + span * tick / TICKS
        _, y = place(0, value)
        parts.append(f'<text x="{x}" y="{y + 4:.1f}" fill="{colour}" text-anchor="{anchor}">{value:.3g}</text>')
    return parts
