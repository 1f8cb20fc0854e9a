"""A finished output in napari: raw, classes and instances at their voxel size, read level by level as you zoom and scroll.

python examples/open_in_napari.py OUT [VOLUME]

VOLUME is where the raw voxels are, if they were moved since the run. emseg does not need napari, so it must be installed beside
it: pip install 'napari[all]'
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import isclose
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import zarr

from emseg.box import AXES
from emseg.specs.volume import Part
from emseg.store.ome import Space, levels, multiscales_of
from emseg.store.output import open_output
from emseg.store.volume import open_volume
from emseg_workflows import status
from emseg_workflows.flows.record import recipe_of

Level = tuple[da.Array, Space]
"""Voxels, and where they lie."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What napari is given for one layer."""

    kind: Literal["image", "labels"]
    name: str
    levels: list[da.Array]
    """The finest first; nothing is read before it is shown."""
    scale: tuple[float, ...]
    """Voxel size of the finest level."""
    translate: tuple[float, ...]
    """Where the centre of its first voxel lies."""
    units: tuple[str | None, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `add_image` or `add_labels` is called with; a single level is an image like any other."""
        several = len(self.levels) > 1
        place = {"name": self.name, "scale": self.scale, "translate": self.translate}
        units = {} if None in self.units else {"units": self.units}
        return {"data": self.levels if several else self.levels[0], "multiscale": several, **place, **units, **self.options}


def layers_of(output: Path, volume: Path | None = None) -> Iterator[Layer]:
    """The layers of an output, the lowest first; `volume` is where the raw voxels are, None for where the run found them."""
    place = str(volume or status(output).volume or "")
    if place and "://" not in place:  # what is on an object store is not opened here
        part = recipe_of(open_output(output)).volume.part  # which channel, if it has several
        yield layer("image", "raw", raw_levels(Path(place), part), blank=0)
    folder = output / "labels"
    for name in ome(zarr.open_group(folder, mode="r"))["labels"]:
        group = zarr.open_group(folder / name, mode="r")
        shown = classes(ome(group)["image-label"])
        yield layer("labels", name, image_levels(group), blank=255 if shown else 0, **shown)  # as where nothing is computed


def layer(kind: Literal["image", "labels"], name: str, found: Sequence[Level], blank: int, **options: Any) -> Layer:
    """A layer of these levels. napari takes one scale and one translation, those of the finest level.

    It lets all levels begin at the same corner, and concludes from their lengths how much coarser they are. So levels that
    have no such place are left out, and lengths that cannot be divided are filled up with `blank`.
    """
    finest, space = found[0]
    factors = [tuple(round(a / b) for a, b in zip(at.scale, space.scale, strict=True)) for _, at in found]
    fitting = list(takewhile(lambda pair: same_place(pair[0][1], space.coarser(pair[1])), zip(found, factors, strict=True)))
    extent = [-(-length // factor) * factor for length, factor in zip(finest.shape, fitting[-1][1], strict=True)]
    filled = []
    for (voxels, _), factor in fitting:
        lengths = (whole // f for whole, f in zip(extent, factor, strict=True))
        more = [(0, length - given) for length, given in zip(lengths, voxels.shape, strict=True)]
        filled.append(da.pad(voxels, more, constant_values=blank) if any(after for _, after in more) else voxels)
    return Layer(kind, name, filled, space.scale, space.translation, space.units, options)


def same_place(one: Space, other: Space) -> bool:
    """Whether voxels are of the same size and begin at the same place; a coarser voxel's centre is half a voxel further."""
    pairs = zip((*one.scale, *one.translation), (*other.scale, *other.translation), strict=True)
    return all(isclose(a, b, rel_tol=1e-6, abs_tol=1e-6 * max(one.scale)) for a, b in pairs)


def image_levels(group: zarr.Group, front: tuple[int, ...] | None = None) -> list[Level]:
    """The levels of an OME-Zarr image, along its axes in space; `front` is the entry of each other axis, 0 if not said."""
    found = []
    for path, space in levels(multiscales_of(group.attrs)):
        voxels, rank = da.from_zarr(group[path]), sum(name in AXES for name in space.names)
        found.append((voxels[front or (0,) * (voxels.ndim - rank)], space.last(rank)))  # one channel, one time
    return found


def raw_levels(path: Path, part: Part | None = None) -> list[Level]:
    """The levels of a volume, which may be a plain array."""
    node, volume = zarr.open(path, mode="r"), open_volume(path, part=part)
    if isinstance(node, zarr.Group):
        return image_levels(node, volume.front)
    spec = volume.spec
    space = Space(AXES, spec.scale, spec.translation, spec.units).last(spec.rank)
    return [(da.from_zarr(node)[volume.front], space)]


def ome(group: zarr.Group) -> Any:
    """The OME-Zarr metadata of a group."""
    return group.attrs["ome"]


def classes(described: Mapping[str, Any]) -> dict[str, Any]:
    """Colours and names of classes, as they are stored with the labels; nothing of instances, which have none."""
    if "colors" not in described:
        return {}
    colours = {entry["label-value"]: [part / 255 for part in entry["rgba"]] for entry in described["colors"]}
    names = {entry["label-value"]: entry["name"] for entry in described["properties"]}
    features = {"index": list(names), "class": list(names.values())}  # told where the mouse is
    return {"colormap": {**colours, None: [0, 0, 0, 0]}, "features": features, "opacity": 0.4}


def main(output: Path, volume: Path | None) -> None:
    """Show it until the window is closed."""
    try:
        import napari  # noqa: PLC0415
    except ImportError:
        sys.exit("napari is not installed: pip install 'napari[all]'")
    viewer = napari.Viewer(title=output.name)
    for made in layers_of(output, volume):
        add = viewer.add_image if made.kind == "image" else viewer.add_labels
        add(**made.arguments)
    napari.run()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
