"""Estimate the cost of runs by arithmetic alone, without a volume or weights.

python examples/look_at_plan.py
"""

from __future__ import annotations

from emseg_core.grid.cost import cost_of
from emseg_core.grid.layout import plan_volume
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.volume import VolumeSpec

PAPER = ModelSpec.unet(width=64, depth=4)
SMALL = ModelSpec.unet(width=16, depth=2, kernel=(3, 3, 3), pooling=(2, 2, 2))


def main() -> None:
    """Print a line for each volume and network."""
    for name, shape in (("a slice", (1, 4096, 4096)), ("a stack", (1000, 8192, 8192)), ("a petabyte", (100_000,) * 3)):
        volume = VolumeSpec(shape, "uint8", (64, 64, 64))
        for network, model in (("2-D U-Net of the paper", PAPER), ("small 3-D U-Net", SMALL)):
            plan = plan_volume(volume, model)
            cost = cost_of(plan, volume, probabilities=False)
            print(
                f"{name:<10}  {network:<22}  {cost.blocks:>9} blocks  tile {'x'.join(map(str, plan.tile)):<12}"
                f"{cost.flops / 1e15:12.3g} PFLOP  read {cost.bytes_read / cost.bytes_needed:.1f}x  "
                f"{cost.bytes_per_worker / 2**30:.1f} GiB per worker"
            )


if __name__ == "__main__":
    main()
