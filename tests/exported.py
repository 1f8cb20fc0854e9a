"""Make an output to export, with levels and an offset, and return its content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr
from numpy.typing import NDArray
from runs import PLANAR, rewrite_description, save_random_model, texture

from emseg import label, segment
from emseg_core.store.outputs.lifecycle import open_output

SIZE, FIRST, REGION = (30.0, 4.5, 4.0), (90.0, 0.0, -8.0), (1, 0, 8)
STEPS = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
"""Voxels of the finest level per voxel of each level, for thick voxels."""
WHAT: dict[str, dict[str, Any]] = {
    "classes": {},
    "instances": {"instances": "instances"},
    "inside": {"probability": "inside"},
}
"""Options of an export, by its content."""


def make_output(folder: Path) -> Path:
    """Make an output of part of a volume, with probabilities, instances and two coarser levels."""
    model = save_random_model(folder / "m.safetensors", PLANAR)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    steps = [{"type": "scale", "scale": list(SIZE)}, {"type": "translation", "translation": list(FIRST)}]
    described = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    ome = {"version": "0.5", "multiscales": [described]}
    group = zarr.create_group(folder / "raw.zarr", attributes={"ome": ome})
    group.create_array("0", data=texture((6, 90, 118)), chunks=(5, 16, 16))
    with patch("emseg_core.grid.pyramid.MAX_COARSEST_LENGTH", 32):
        options = {"model": model, "probabilities": True, "workers": 0, "roi": "1:5,:,8:"}
        segment(folder / "raw.zarr", folder / "raw.out", **options)  # type: ignore[arg-type]
        label(folder / "raw.out", workers=0)
    assert [level.step for level in open_output(folder / "raw.out").levels] == [(1, 1, 1), (1, 2, 2), (1, 2, 2)]
    return folder / "raw.out"


def in_unit(output: Path, place: Path, unit: str | None) -> Path:
    """Describe the output as if its volume had another unit, or none."""
    shutil.copytree(output, place)
    for file in place.rglob("*.json"):
        file.write_text(file.read_text().replace('"nanometer"', json.dumps(unit)))
    rewrite_description(place, lambda text: text)
    return place


def levels_in(output: Path, what: str) -> list[NDArray[Any]]:
    """Return the exported voxels ``(z, y, x)`` of each level."""
    path = {"classes": "labels/classes", "instances": "labels/instances", "inside": "probabilities"}[what]
    found = [np.asarray(zarr.open_array(output / path / str(level), mode="r")) for level in range(len(STEPS))]
    return [level[open_output(output).classes.index("inside")] for level in found] if what == "inside" else found


def place_of(factor: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Return the voxel size of a level of the output, and the position of the centre of its first voxel."""
    first = [t + s * o for t, s, o in zip(FIRST, SIZE, REGION, strict=True)]
    return [s * f for s, f in zip(SIZE, factor, strict=True)], [
        t + s * (f - 1) / 2 for t, s, f in zip(first, SIZE, factor, strict=True)
    ]
