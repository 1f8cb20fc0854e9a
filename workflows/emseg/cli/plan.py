"""`emseg plan`."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

import click

from emseg.cli.options import device_option, json_option, settings_options
from emseg.cli.saying import say, say_json, say_text
from emseg.cli.values import Location
from emseg.settings.run import RunSettings
from emseg_core.box import Triple
from emseg_core.store.files.place import Place

if TYPE_CHECKING:
    from emseg_core.grid.layout import Layout

SHOWN = 8
"""Layouts that `emseg plan --explain` shows."""


@click.command()
@click.argument("volume", type=Location())
@settings_options("backend", "empty", "normalise", "precision")
@device_option
@click.option("--explain", is_flag=True, help="Show the layouts that were considered, and what each would cost.")
@json_option
def plan(volume: Place, settings: RunSettings, device: Literal["cpu", "cuda"] | None, explain: bool, as_json: bool) -> None:
    """Show what a run on VOLUME would do and cost, without running it."""
    from emseg.flows.plan import plan as flow

    planned = flow(volume, settings, device=device)
    if as_json:
        say_json({**planned.to_json(), **({"layouts": planned.layouts_to_json()} if explain else {})})
        return
    say_text(str(planned))
    if explain:
        _explain(planned.layouts, planned.cost.bytes_needed)


def _explain(layouts: list[Layout], needed: int) -> None:
    """Show the cheapest layout of each write unit."""
    from emseg.flows.plan import size

    best: dict[Triple, Layout] = {}
    for layout in layouts:
        best.setdefault(layout.unit, layout)
    first, least = layouts[0], min(layout.flops for layout in layouts)
    say("", f"{'write unit':<20}{'tile':<20}{'blocks':>9}{'arithmetic':>12}{'reading':>9}{'tile memory':>13}{'price':>8}")
    for layout in islice(best.values(), SHOWN):
        unit, tile = (" x ".join(map(str, shape)) for shape in (layout.unit, layout.tile))
        say(
            f"{unit:<20}{tile:<20}{layout.blocks:>9}{layout.flops / least:>12.2f}{layout.bytes_read / needed:>9.2f}"
            f"{size(layout.tile_bytes):>13}{layout.price / first.price:>8.3f}"
        )
    say(
        "",
        f"Of {len(layouts)} that leave enough blocks to share out, the first is taken. The price is that of the arithmetic",
        "(here times the least of all), of what is read and decompressed (times what is needed), and of each call of",
        "the network; and each doubling of a tile's memory must save some of it.",
    )
