"""`emseg plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from emseg.box import Triple
from emseg_workflows.cli.options import (
    channel_option,
    device_option,
    json_option,
    level_option,
    mask_option,
    model_option,
    of_level,
    probabilities_option,
    pyramid_option,
    region_option,
    threads_option,
    tile_option,
    timepoint_option,
    tta_option,
)
from emseg_workflows.cli.saying import say
from emseg_workflows.cli.values import Location

if TYPE_CHECKING:
    from emseg.grid.layout import Layout
    from emseg.store.place import Place

SHOWN = 8
"""Layouts that `emseg plan --explain` shows."""


@click.command()
@click.argument("volume", type=Location())
@model_option
@level_option
@channel_option
@timepoint_option
@region_option
@tile_option
@probabilities_option
@tta_option
@pyramid_option
@mask_option
@device_option
@threads_option
@click.option("--explain", is_flag=True, help="Show the layouts that were considered, and what each would cost.")
@json_option
def plan(
    volume: Place,
    model: str | None,
    level: int | None,
    channel: str | None,
    timepoint: int | None,
    roi: str | None,
    tile: Triple | None,
    probabilities: bool,
    tta: bool,
    pyramid: bool | None,
    mask: Path | None,
    device: Literal["cpu", "cuda"] | None,
    threads: int,
    explain: bool,
    as_json: bool,
) -> None:
    """Say what a run on VOLUME would do and cost, and stop there."""
    from emseg.grid.cost import cost_of  # noqa: PLC0415
    from emseg_workflows.flows.plan import levels_for, outside_of, plan_run  # noqa: PLC0415

    planned = plan_run(
        of_level(volume, level),
        channel=channel,
        timepoint=timepoint,
        model=model,
        region=roi,
        tile=tile,
        tta=tta,
        device=device,
        threads=threads,
    )
    made = planned.plan
    cost = cost_of(made, planned.volume, probabilities, tta, levels_for(planned.volume, made.region, pyramid))
    left_out = outside_of(mask, made, planned.volume)
    outside = 0 if left_out is None else int(left_out.sum())
    if as_json:
        layouts = {"layouts": [asdict(layout) for layout in planned.layouts]} if explain else {}
        told = {"plan": made.to_json(), "cost": cost.to_json(), "outside": outside, **layouts}
        say(*json.dumps(told, indent=2).splitlines())
        return
    for name, value in (
        ("region", str(made.region)),
        (
            "blocks",
            f"{cost.blocks} of {' x '.join(map(str, made.unit))} voxels (z, y, x)"
            + (f"; {outside} lie outside the mask" if outside else ""),
        ),
        ("tiles", f"{cost.tiles} of {' x '.join(map(str, made.tile))} voxels"),
        ("arithmetic", f"{cost.flops / 1e12:.3g} TFLOP, {cost.flops / made.region.voxels / 1e3:.0f} kFLOP per voxel"),
        ("reading", f"{_size(cost.bytes_read)}, {cost.bytes_read / cost.bytes_needed:.2f} times what is needed"),
        ("memory", f"{_size(cost.bytes_per_worker)} per worker; on a GPU {_size(cost.bytes_per_predictor)} of them"),
        ("output", f"{_size(cost.output_bytes)} before compression, in {cost.output_files} files"),
    ):
        say(f"{name:<11}{value}")
    if explain:
        _explain(planned.layouts, cost.bytes_needed)


def _explain(layouts: list[Layout], needed: int) -> None:
    """The cheapest layout of each write unit."""
    best: dict[Triple, Layout] = {}
    for layout in layouts:
        best.setdefault(layout.unit, layout)
    first, least = layouts[0], min(layout.flops for layout in layouts)
    say("", f"{'write unit':<20}{'tile':<20}{'blocks':>9}{'arithmetic':>12}{'reading':>9}{'tile memory':>13}{'price':>8}")
    for layout in islice(best.values(), SHOWN):
        unit, tile = (" x ".join(map(str, shape)) for shape in (layout.unit, layout.tile))
        say(
            f"{unit:<20}{tile:<20}{layout.blocks:>9}{layout.flops / least:>12.2f}{layout.bytes_read / needed:>9.2f}"
            f"{_size(layout.tile_bytes):>13}{layout.price / first.price:>8.3f}"
        )
    say(
        "",
        f"Of {len(layouts)} that leave enough blocks to share out, the first is taken. The price is that of the arithmetic",
        "(here times the least of all), of what is read and decompressed (times what is needed), and of each call of",
        "the network; and each doubling of a tile's memory must save some of it.",
    )


def _size(count: int) -> str:
    """Bytes as a person reads them."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} PiB"
