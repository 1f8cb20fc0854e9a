"""Count what the skip connections contribute.

python -m unet_paper.skips
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from emseg_core.specs.model import ModelSpec
from unet_paper.drawing import table
from unet_paper.network import PAPER, TILE, rows


@dataclass(frozen=True)
class Skip:
    """The skip connection of one level, from the contracting to the expansive path."""

    level: int
    made: int
    """Length of an edge of the map before cropping, in pixels."""
    kept: int
    """Length of an edge of the map after cropping, in pixels."""
    channels: int
    """Number of channels of the skip; as many come from below."""
    products: int
    """Multiplications with channels of the skip in the first convolution after it; as many are with the other channels."""
    below: int
    """Number of values that come from below, before the up-convolution."""

    @property
    def numbers(self) -> int:
        """Number of values that the skip brings."""
        return self.channels * self.kept**2


def skips(spec: ModelSpec, side: int) -> list[Skip]:
    """List the skips for a tile of `side` x `side` pixels, from the lowest."""
    made = rows(spec, side)
    down = {row.level: row.sizes[-1] for row in made if row.way == "down"}
    found = []
    for below, row in pairwise(made):
        if row.way == "up":
            channels, taps = row.channels[0] // 2, spec.kernels[row.level][1] * spec.kernels[row.level][2]
            products = channels * row.channels[1] * taps * row.sizes[1] ** 2
            sent = below.channels[-1] * below.sizes[-1] ** 2
            found.append(Skip(row.level, down[row.level], row.sizes[0], channels, products, sent))
    return found


def report() -> str:
    """Report what is cropped from each skip, what it brings, and its share of the arithmetic."""
    found = skips(PAPER, TILE[1])
    cropped = [
        (skip.level, f"{skip.made} -> {skip.kept}", (skip.made - skip.kept) // 2, f"{1 - (skip.kept / skip.made) ** 2:.2f}")
        for skip in found
    ]
    brought = [
        (skip.level, skip.channels, f"{skip.numbers / 1e6:.2f}", f"{skip.below / 1e6:.2f}", f"{skip.products / 1e9:.2f}")
        for skip in found
    ]
    by_skip, total = sum(skip.products for skip in found), PAPER.flops(TILE) // 2
    return "\n".join(
        [
            table(("level", "pixels", "cropped per side", "area cropped"), *cropped),
            "",
            table(("level", "channels", "values by skip, 1e6", "from below, 1e6", "products with the skip, 1e9"), *brought),
            f"products with channels of a skip: {by_skip / 1e9:.1f}e9 of {total / 1e9:.1f}e9",
        ]
    )


if __name__ == "__main__":
    print(report())
