"""Fig. 1: derive the network from `ModelSpec` alone.

python -m unet_paper.network
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from emseg_core.specs.model import ModelSpec
from unet_paper.drawing import BLUE, GREEN, GREY, PALE, RED, line, rectangle, svg, table, words

PAPER = ModelSpec.unet()
TILE = (1, 572, 572)
TOPS = (30, 214, 334, 422, 492)
"""Upper edge of the maps of each level in the figure."""


@dataclass(frozen=True)
class Row:
    """The feature maps of one level on the contracting (down) or the expansive (up) path."""

    level: int
    way: str
    sizes: list[int]
    """Length of an edge of each map, in pixels."""
    channels: list[int]
    """Number of channels of each map."""


def rows(spec: ModelSpec, side: int) -> list[Row]:
    """Compute the feature maps for a tile of `side` x `side` pixels, in the order of the forward pass."""
    made = [Row(0, "down", [side], [spec.channels])]
    for layer in spec.layers((1, side, side)):
        size, level = layer.shape[1], made[-1].level
        if layer.kind == "pool":
            made.append(Row(level + 1, "down", [size], [layer.outputs]))
        elif layer.kind == "join":
            made.append(Row(level - 1, "up", [size], [layer.outputs]))
        elif layer.kind == "convolve":
            made[-1].sizes.append(size)
            made[-1].channels.append(layer.outputs)
    return made


def lost(spec: ModelSpec) -> list[int]:
    """Compute the input pixels lost on each side of a tile to the valid convolutions of each level, from the top."""
    pixel, taken = 1, []
    for level, kernel in enumerate(spec.kernels):
        convolutions = 2 if level == spec.depth else 4
        taken.append(convolutions * (kernel[1] // 2) * pixel)
        pixel *= spec.pooling[level][1] if level < spec.depth else 1
    return taken


def report() -> str:
    """Report sizes, channels, parameters, and the pixels lost."""
    parts = rows(PAPER, TILE[1])
    sizes = table(
        ("level", "", "pixels along an edge", "channels"),
        *((row.level, row.way, *(" -> ".join(map(str, chain)) for chain in (row.sizes, row.channels))) for row in parts),
    )
    output, step, lattice = PAPER.output_shape(TILE)[1], PAPER.step(TILE)[1], PAPER.lattice[1]
    return "\n".join(
        [
            sizes,
            f"{PAPER.parameters:,} parameters with {len(PAPER.classes)} classes",
            f"input pixels lost on each side, by level: {' + '.join(map(str, lost(PAPER)))} = {PAPER.context[1]}",
            f"{TILE[1]} - 2 x {PAPER.context[1]} = {output}",
            f"{output} = {output // lattice} x {lattice} + {output % lattice}: tiles step by {step}",
        ]
    )


def draw() -> str:
    """Draw Fig. 1: the height of a map is its size, and its width grows with its channels."""
    parts: list[str] = []
    corners: dict[int, tuple[float, float]] = {}
    left = 30.0
    for row in rows(PAPER, TILE[1]):
        boxes = placed(row, left)
        parts += [drawing for box in boxes for drawing in box.draw()]
        parts += [arrow(one.right, other.left, BLUE) for one, other in pairwise(boxes)]
        if row.level in corners:
            parts += [arrow(corners[row.level], (boxes[0].left[0], corners[row.level][1]), GREY, 3), boxes[0].halved()]
            parts.append(arrow((boxes[0].middle, TOPS[row.level + 1] - 19), (boxes[0].middle, boxes[0].bottom + 17), GREEN))
        elif row.level:
            parts.append(arrow((boxes[0].middle, boxes[0].top - 38), (boxes[0].middle, boxes[0].top - 18), RED))
        corners.setdefault(row.level, boxes[-1].right)
        left = boxes[-1].x
    return svg(1010, 542, *parts, *legend(690, 464))


@dataclass(frozen=True)
class Map:
    """A feature map as a box of the figure."""

    x: float
    top: float
    size: int
    channels: int

    @property
    def width(self) -> float:
        """Width, which grows with the root of the channels, since the lowest level would otherwise fill the figure."""
        return 3 + 1.4 * math.sqrt(self.channels)

    @property
    def bottom(self) -> float:
        """Lower edge."""
        return self.top + self.size / 4.4

    @property
    def middle(self) -> float:
        """Centre along x."""
        return self.x + self.width / 2

    @property
    def left(self) -> tuple[float, float]:
        """Point where an arrow ends."""
        return self.x - 2, (self.top + self.bottom) / 2

    @property
    def right(self) -> tuple[float, float]:
        """Point where an arrow starts."""
        return self.x + self.width + 2, (self.top + self.bottom) / 2

    def draw(self) -> list[str]:
        """Draw the box with its channels above and its size below."""
        return [
            rectangle(self.x, self.top, self.width, self.bottom - self.top, fill=BLUE),
            words(self.middle, self.top - 5, str(self.channels), anchor="middle", size=11),
            words(self.middle, self.bottom + 13, str(self.size), anchor="middle", colour=GREY, size=11),
        ]

    def halved(self) -> str:
        """Draw the half that is copied from the contracting path."""
        return rectangle(self.x, self.top, self.width / 2, self.bottom - self.top, fill=PALE)


def placed(row: Row, left: float) -> list[Map]:
    """Place the maps of a row side by side."""
    boxes: list[Map] = []
    for size, channels in zip(row.sizes, row.channels, strict=True):
        boxes.append(Map(boxes[-1].x + boxes[-1].width + 26 if boxes else left, TOPS[row.level], size, channels))
    return boxes


def arrow(start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1.5) -> str:
    """Draw a straight arrow."""
    return line(np.array([start, end]), colour=colour, width=width, arrow=True)


def legend(x: float, y: float) -> list[str]:
    """Draw the legend of the arrows."""
    names = (
        (BLUE, "convolution 3 x 3, ReLU; the last one 1 x 1"),
        (GREY, "copy and crop"),
        (RED, "max pooling 2 x 2"),
        (GREEN, "up-convolution 2 x 2"),
    )
    return [
        part
        for place, (colour, name) in enumerate(names)
        for part in (arrow((x, y + 20 * place), (x + 24, y + 20 * place), colour), words(x + 34, y + 4 + 20 * place, name))
    ]


if __name__ == "__main__":
    print(report())
