"""`emseg plan`: what a run would do and cost, without doing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self, Unpack

from emseg.flows.running.draft import check_settings, levels_for, outside_of, part_of
from emseg.flows.running.limits import limits_of
from emseg.flows.segment import RunKeywords, segment
from emseg.pages.markup import tag
from emseg.placement import Placement
from emseg.runs.tally import Report
from emseg.settings.run import RunSettings, settings_from
from emseg_core.grid.cost import Cost, cost_of
from emseg_core.grid.layout import Layout, layouts_of, plan_with
from emseg_core.grid.plan import Plan
from emseg_core.specs.region import parse_region
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.files.place import Address, Place, parse_place
from emseg_core.store.volumes.volume import open_volume


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan of a run, to inspect or to run."""

    place: Place
    """Of the volume."""
    settings: RunSettings
    placement: Placement
    plan: Plan
    """Blocks and tiles."""
    volume: VolumeSpec
    layouts: list[Layout]
    """All layouts that were considered, the cheapest first, which is that of the plan."""
    cost: Cost
    outside: int
    """Blocks that the mask leaves out."""
    start: Callable[..., Report] = field(default=segment, repr=False)
    """Function that runs it: `emseg.segment`, with messages for the caller that planned it."""

    def started_by(self, wrap: Callable[[Callable[..., Report]], Callable[..., Report]]) -> Self:
        """Return the same plan, with a wrapper around the function that it starts."""
        return replace(self, start=wrap(self.start))

    def run(self, output: str | Place | None = None, **more: Any) -> Report:
        """Run the plan.

        Parameters
        ----------
        output
            The output, as for `emseg.segment`.
        **more
            What `emseg.segment` takes besides settings: ``overwrite``, ``policy``, ``stop``, ``on_event``.

        Returns
        -------
        Report
            How the run ended.

        Raises
        ------
        InputError
            As `emseg.segment`.
        """
        where = {name: getattr(self.placement, name) for name in Placement.__slots__}
        return self.start(self.place, output, self.settings, **{**where, **more})

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield the name and value of each fact about the plan.

        Yields
        ------
        tuple of str
        """
        plan, cost = self.plan, self.cost
        outside = f"; {self.outside} lie outside the mask" if self.outside else ""
        yield "region", str(plan.region)
        yield "blocks", f"{cost.blocks} of {' x '.join(map(str, plan.unit))} voxels (z, y, x){outside}"
        yield "tiles", f"{cost.tiles} of {' x '.join(map(str, plan.tile))} voxels"
        per_voxel = cost.flops / plan.region.voxels / 1e3
        yield "arithmetic", f"{cost.flops / 1e12:.3g} TFLOP, {per_voxel:.0f} kFLOP per voxel"
        yield "reading", f"{size(cost.bytes_read)}, {cost.bytes_read / cost.bytes_needed:.2f} times what is needed"
        yield "memory", f"{size(cost.bytes_per_worker)} per worker; on a GPU {size(cost.bytes_per_predictor)} of them"
        yield "output", f"{size(cost.output_bytes)} before compression, in {cost.output_files} files"

    def to_json(self) -> dict[str, Any]:
        """Return plan and cost as JSON values."""
        return {"plan": self.plan.to_json(), "cost": self.cost.to_json(), "outside": self.outside}

    def layouts_to_json(self) -> list[dict[str, Any]]:
        """Return the layouts that were considered as JSON values."""
        return [asdict(layout) for layout in self.layouts]

    def __str__(self) -> str:
        return "\n".join(f"{name:<11}{value}" for name, value in self.facts())

    def _repr_html_(self) -> str:
        """Return the same as a table, for notebooks."""
        rows = [tag("tr", tag("th", name), tag("td", value)) for name, value in self.facts()]
        return tag("table", *rows)


def plan(volume: str | Path | Address, settings: RunSettings | None = None, **given: Unpack[RunKeywords]) -> RunPlan:
    """Plan a run, and write nothing.

    Parameters
    ----------
    volume
        A Zarr array or OME-Zarr image, by its path or address.
    settings
        Settings that decide the bytes of the output, or its fields as keywords.
    **given
        Fields of `RunSettings` and `Placement`.

    Returns
    -------
    RunPlan

    Raises
    ------
    InputError
        As `emseg.segment`.
    """
    settings, where = settings_from(settings, given)
    placement = Placement(**where)
    place = settings.level_of(parse_place(volume))
    spec = check_settings(settings, lambda: open_volume(place, part=part_of(settings)))
    source = open_volume(place, part=part_of(settings, spec))
    roi = settings.roi
    region = (parse_region(roi, source.spec) if isinstance(roi, str) else roi) or source.spec.box
    limits = limits_of(placement, settings.threads, settings.tta)
    layouts = layouts_of(source.spec, spec, region, settings.tile or spec.only_tile, limits)
    made = plan_with(layouts[0], source.spec, spec, region)
    steps = levels_for(source.spec, region, settings.pyramid)
    outside = outside_of(settings.mask, made, source.spec)
    return RunPlan(
        place=parse_place(volume),
        settings=settings,
        placement=placement,
        plan=made,
        volume=source.spec,
        layouts=layouts,
        cost=cost_of(made, source.spec, settings.probabilities, settings.tta, steps, settings.heads),
        outside=0 if outside is None else int(outside.sum()),
    )


def size(count: int) -> str:
    """Return a number of bytes as a person reads it.

    Parameters
    ----------
    count
        Number of bytes.

    Returns
    -------
    str
        At least three significant digits, and a binary unit.

    Examples
    --------
    >>> size(1000), size(1536), size(1023 * 2**10), size(3 * 2**40)
    ('1000 B', '1.5 KiB', '1023 KiB', '3 TiB')
    """
    rest = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if rest < 1024:
            return f"{rest:.{max(3, len(str(int(rest))))}g} {unit}"
        rest /= 1024
    return f"{rest:.3g} PiB"
