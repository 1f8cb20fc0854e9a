"""`emseg plan`: what a run would do, without doing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import BlockError, VolumeError
from emseg.grid.layout import BLOCK_FLOPS, Layout, Limits, layouts_of, plan_with
from emseg.grid.mask import outside
from emseg.grid.plan import Plan
from emseg.grid.pyramid import steps_of
from emseg.grid.symmetry import SYMMETRIES, check_symmetric
from emseg.model.device import Device
from emseg.model.source import describe, model_at
from emseg.specs.region import parse_region
from emseg.specs.volume import MASK_DTYPES, Part, VolumeSpec
from emseg.store.place import Address
from emseg.store.volume import open_volume
from emseg_workflows.launch import tile_budget
from emseg_workflows.placement import Placement


@dataclass(frozen=True, slots=True)
class Planned:
    """What a run would do."""

    plan: Plan
    volume: VolumeSpec
    layouts: list[Layout]
    """All that were considered, the cheapest first, which is that of the plan."""


def plan_run(
    volume: str | Path | Address,
    *,
    channel: int | str | None = None,
    timepoint: int | None = None,
    model: str | Path | None = None,
    predictor: str | None = None,
    region: str | Box | None = None,
    tile: Triple | None = None,
    tta: bool = False,
    threads: int = 1,
    placement: Placement | None = None,
    device: Device | None = None,
) -> Planned:
    """The plan of a run with these options, and what else was considered; nothing is written.

    Raises
    ------
    InputError
        As `segment`.
    """
    source, placement = open_volume(volume, part=Part(channel, timepoint)), placement or Placement()
    spec, _ = describe(model_at(model, predictor))
    if tta:
        check_symmetric(spec)
    box = (parse_region(region, source.spec) if isinstance(region, str) else region) or source.spec.box
    limits = limits_of(placement, threads, device or placement.default_device, tta)
    layouts = layouts_of(source.spec, spec, box, tile or spec.only_tile, limits)
    return Planned(plan_with(layouts[0], source.spec, spec, box), source.spec, layouts)


def levels_for(volume: VolumeSpec, region: Box, pyramid: bool | None = None) -> tuple[Triple, ...]:
    """Step of each coarser level of a region's output; there are none if `pyramid` says so, or where it is small."""
    return () if pyramid is False else steps_of(region.shape, volume.proportions)


def outside_of(mask: Path | None, plan: Plan, volume: VolumeSpec) -> NDArray[np.bool_] | None:
    """Blocks of a plan that a mask leaves out, ``(z, y, x) bool``; None without a mask.

    Raises
    ------
    VolumeError
        If the mask cannot be read, or leaves out all.
    """
    if mask is None:
        return None
    try:
        return outside(plan, volume, open_volume(mask, dtypes=MASK_DTYPES))
    except BlockError as error:
        raise VolumeError(f"the mask {mask} cannot be read: {error}") from error


def limits_of(placement: Placement, threads: int, device: Device, tta: bool) -> Limits:
    """What bounds the layout of a run; with test-time augmentation a block takes as often as long."""
    return Limits(tile_budget(placement, threads, device), BLOCK_FLOPS // (len(SYMMETRIES) if tta else 1))
