"""Determine the receptive field of each level by arithmetic, and by the gradient of one pixel with random weights.

python -m unet_paper.receptive_field
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from emseg_core.model.unet import UNet
from emseg_core.specs.model import ModelSpec
from unet_paper.drawing import BLUE, GREY, PALE, RED, rectangle, svg, table, words

SMALL = ModelSpec.unet(width=4)
"""The paper's network with fewer channels, which has the same receptive field."""
TILE = SMALL.tile_for(SMALL.lattice)
TRIES = 3
"""Number of tiles over which gradients are summed: in a single one, pooling may skip a pixel at the edge."""

Interval = tuple[int, int]
"""First and last pixel along an axis."""


@dataclass(frozen=True)
class Stage:
    """The second convolution of a level on the contracting (down) or the expansive (up) path."""

    way: str
    level: int

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.way} {self.level}"


def stages(spec: ModelSpec) -> list[Stage]:
    """List the stages in the order of the forward pass."""
    down = [Stage("down", level) for level in range(spec.depth + 1)]
    return down + [Stage("up", level) for level in reversed(range(spec.depth))]


def seen(spec: ModelSpec, stage: Stage, pixel: int) -> Interval:
    """Compute the input pixels, along an axis of the plane, that a pixel of a stage depends on.

    Going back through the network, two convolutions widen an interval by ``2 (k - 1)``, an up-convolution halves it, and
    pooling doubles it. The path through the bottom level is the widest and contains the intervals of the skips.
    """
    first, last = pixel, pixel
    if stage.way == "up":
        for level in range(stage.level, spec.depth):
            last += 2 * (spec.kernels[level][1] - 1)
            first, last = (end // spec.pooling[level][1] for end in (first, last))
    for level in reversed(range(spec.depth + 1 if stage.way == "up" else stage.level + 1)):
        last += 2 * (spec.kernels[level][1] - 1)
        if level:
            factor = spec.pooling[level - 1][1]
            first, last = first * factor, last * factor + factor - 1
    return first, last


def sizes(spec: ModelSpec, stage: Stage) -> list[int]:
    """Compute the receptive field of a stage along an axis, in pixels: all values that occur on the lattice."""
    lengths = {last - first + 1 for first, last in (seen(spec, stage, pixel) for pixel in range(spec.lattice[1]))}
    return sorted(lengths)


def network() -> UNet:
    """Build the network with random positive weights, so that no unit is dead and nothing cancels."""
    drawn = UNet(SMALL).double()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, weights in drawn.named_parameters():
            weights.copy_(torch.rand(weights.shape, generator=generator) if name.endswith("weight") else torch.zeros(()))
    return drawn.eval()


def measured(stage: Stage) -> dict[int, Interval]:
    """Measure the first and the last row with a gradient, for each pixel on the diagonal of a stage.

    Raises
    ------
    ValueError
        If a receptive field is not square.
    """
    drawn, kept = network(), list[Tensor]()
    where: nn.ModuleList = drawn.down if stage.way == "down" else drawn.join
    block = where[stage.level if stage.way == "down" else SMALL.depth - 1 - stage.level]
    block.get_submodule("1").register_forward_hook(lambda _module, _seen, made: kept.append(made))
    generator = torch.Generator().manual_seed(1)
    tiles = torch.rand((TRIES, 1, *TILE), generator=generator, dtype=torch.float64).requires_grad_()
    drawn(tiles)
    found = {}
    for pixel in range(min(kept[0].shape[-1], SMALL.lattice[1])):
        (gradient,) = torch.autograd.grad(kept[0][..., pixel, pixel].sum(), tiles, retain_graph=True)
        rows, columns = (np.flatnonzero(gradient.abs().sum(dim=axes).numpy()) for axes in ((0, 1, 2, 4), (0, 1, 2, 3)))
        found[pixel] = int(rows[0]), int(rows[-1])
        if found[pixel] != (int(columns[0]), int(columns[-1])):
            raise ValueError(
                f"pixel {pixel} of {stage.name} sees rows {found[pixel]}, but columns {columns[0]} to {columns[-1]}"
            )
    return found


def report() -> str:
    """Report the receptive field of each stage, by arithmetic and by measurement."""
    rows = []
    for stage in stages(SMALL):
        lengths = sorted({last - first + 1 for first, last in measured(stage).values()})
        rows.append((stage.name, *(" or ".join(map(str, either)) for either in (sizes(SMALL, stage), lengths))))
    before, behind = reach(SMALL)
    return "\n".join(
        [
            table(("pixels of the input that a pixel sees along an axis", "by arithmetic", "by its gradient"), *rows),
            f"an output pixel sees {min(before)} to {max(before)} pixels before it and {min(behind)} to {max(behind)} after it",
        ]
    )


def reach(spec: ModelSpec) -> tuple[list[int], list[int]]:
    """Compute how far each output pixel of a lattice period sees before and after itself, in pixels."""
    intervals = [seen(spec, Stage("up", 0), pixel) for pixel in range(spec.lattice[1])]
    places = [pixel + spec.context[1] for pixel in range(spec.lattice[1])]
    before = [place - first for place, (first, _) in zip(places, intervals, strict=True)]
    return before, [last - place for place, (_, last) in zip(places, intervals, strict=True)]


def draw() -> str:
    """Draw a bar per stage: pale for what some pixels see, blue for what all see, with a red line at the measured end."""
    parts, scale = [], 2.4
    for place, stage in enumerate(stages(SMALL)):
        y, lengths = 30 * place + 12, sizes(SMALL, stage)
        parts.append(words(76, y + 16, stage.name, anchor="end"))
        parts.append(rectangle(86, y, lengths[-1] * scale, 22, fill=PALE))
        parts.append(rectangle(86, y, lengths[0] * scale, 22, fill=BLUE))
        found = sorted({last - first + 1 for first, last in measured(stage).values()})
        parts += [rectangle(85 + length * scale, y - 2, 2, 26, fill=RED) for length in found]
        parts.append(words(96 + lengths[-1] * scale, y + 16, " or ".join(map(str, lengths))))
    height = 30 * len(stages(SMALL)) + 18
    parts.append(words(86, height + 10, "pixels of the input that one pixel sees along an axis", colour=GREY))
    parts.append(words(86, height + 28, "red: where its gradient ends", colour=RED))
    return svg(680, height + 40, *parts)


if __name__ == "__main__":
    print(report())
