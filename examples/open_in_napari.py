"""Open a finished output in napari: raw data, classes and instances at their voxel size, as multiscale layers.

python examples/open_in_napari.py OUT [VOLUME]

VOLUME is the path of the raw data if it was moved since the run. emseg does not depend on napari, so install it separately:
pip install 'napari[all]'
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

from emseg import status
from emseg.flows.records.run_log import recipe_of
from emseg_core.box import AXES
from emseg_core.specs.volume import Selection
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.volumes.volume import open_volume
from emseg_core.store.zarrs.ome import Space, levels, multiscales_of

Level = tuple[da.Array, Space]
"""Voxels of a pyramid level, and their position in space."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer for napari."""

    kind: Literal["image", "labels"]
    name: str
    levels: list[da.Array]
    """Pyramid levels, the finest first; nothing is read before it is shown."""
    scale: tuple[float, ...]
    """Voxel size of the finest level."""
    translate: tuple[float, ...]
    """Position of the centre of its first voxel."""
    units: tuple[str | None, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `add_image` or `add_labels`; a single level is passed as a plain image."""
        several = len(self.levels) > 1
        place = {"name": self.name, "scale": self.scale, "translate": self.translate}
        units = {} if None in self.units else {"units": self.units}
        return {"data": self.levels if several else self.levels[0], "multiscale": several, **place, **units, **self.options}


def layers_of(output: Path, volume: Path | None = None) -> Iterator[Layer]:
    """Build the layers of an output, the lowest first; the raw data is at `volume`, or by default where the run read it."""
    place = str(volume or status(output).volume or "")
    if place and "://" not in place:  # volumes in object stores are not shown here
        selection = recipe_of(open_output(output)).volume.selection  # which channel, if it has several
        yield layer("image", "raw", raw_levels(Path(place), selection), blank=0)
    folder = output / "labels"
    for name in ome(zarr.open_group(folder, mode="r"))["labels"]:
        group = zarr.open_group(folder / name, mode="r")
        shown = classes(ome(group)["image-label"])
        yield layer(
            "labels", name, image_levels(group), blank=255 if shown else 0, **shown
        )  # the value of voxels that are not computed


def layer(kind: Literal["image", "labels"], name: str, found: Sequence[Level], blank: int, **options: Any) -> Layer:
    """Build a layer from pyramid levels.

    napari has one scale and one translation per layer, those of the finest level. It assumes that all levels start at the same
    corner, and derives their scale factors from their lengths. So levels at other positions are left out, and lengths that are
    not multiples of the factors are padded with `blank`.
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
    """Return whether two levels have the same voxel size and position."""
    pairs = zip((*one.scale, *one.translation), (*other.scale, *other.translation), strict=True)
    return all(isclose(a, b, rel_tol=1e-6, abs_tol=1e-6 * max(one.scale)) for a, b in pairs)


def image_levels(group: zarr.Group, front: tuple[int, ...] | None = None) -> list[Level]:
    """Open the levels of an OME-Zarr image along its spatial axes; `front` is the index along each other axis, by default 0."""
    found = []
    for path, space in levels(multiscales_of(group.attrs)):
        voxels, rank = da.from_zarr(group[path]), sum(name in AXES for name in space.names)
        found.append((voxels[front or (0,) * (voxels.ndim - rank)], space.last(rank)))  # one channel, one time
    return found


def raw_levels(path: Path, selection: Selection | None = None) -> list[Level]:
    """Open the levels of a volume, which may be a plain array."""
    node, volume = zarr.open(path, mode="r"), open_volume(path, part=selection)
    if isinstance(node, zarr.Group):
        return image_levels(node, volume.front)
    spec = volume.spec
    space = Space(AXES, spec.scale, spec.translation, spec.units).last(spec.rank)
    return [(da.from_zarr(node)[volume.front], space)]


def ome(group: zarr.Group) -> Any:
    """Return the OME-Zarr metadata of a group."""
    return group.attrs["ome"]


def classes(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the colours and names stored with classes; nothing for instances, which have none."""
    if "colors" not in described:
        return {}
    colours = {entry["label-value"]: [part / 255 for part in entry["rgba"]] for entry in described["colors"]}
    names = {entry["label-value"]: entry["name"] for entry in described["properties"]}
    features = {"index": list(names), "class": list(names.values())}  # shown for the voxel under the mouse
    return {"colormap": {**colours, None: [0, 0, 0, 0]}, "features": features, "opacity": 0.4}


def main(output: Path, volume: Path | None) -> None:
    """Show an output until the window is closed."""
    try:
        import napari
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
