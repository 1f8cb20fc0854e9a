"""What the skips bring back, in numbers.

python -m unet_paper.skips
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from emseg.specs.model import ModelSpec
from unet_paper.drawing import table
from unet_paper.network import PAPER, TILE, rows


@dataclass(frozen=True)
class Skip:
    """What goes from one level's way down to its way up."""

    level: int
    made: int
    """Pixels along an edge of what the way down makes."""
    kept: int
    """Pixels along an edge of what is cropped out of it."""
    channels: int
    """Channels of the skip; as many come from below."""
    products: int
    """Multiplications, in the first convolution that sees them, with channels of the skip; as many with the others."""
    below: int
    """Numbers that come from below, before the up-convolution."""

    @property
    def numbers(self) -> int:
        """Numbers that the skip brings."""
        return self.channels * self.kept**2


def skips(spec: ModelSpec, side: int) -> list[Skip]:
    """Each skip that a tile of `side` x `side` pixels meets, from the lowest."""
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


def told() -> str:
    """What is cropped from each skip, what it brings, and its part in the arithmetic."""
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
            table(("level", "pixels", "cropped per side", "part cropped"), *cropped),
            "",
            table(("level", "channels", "numbers by skip, 1e6", "from below, 1e6", "products with the skip, 1e9"), *brought),
            f"products with channels of a skip: {by_skip / 1e9:.1f}e9 of {total / 1e9:.1f}e9",
        ]
    )


if __name__ == "__main__":
    print(told())
