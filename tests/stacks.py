"""Stacks of slices in the formats that `emseg ingest` reads, as other programs write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import tensorstore
from numpy.typing import NDArray
from PIL import Image

BLOCK = (8, 16, 32)
"""Shape (z, y, x) of chunks, in voxels."""


def save_hdf5(path: Path, data: NDArray[Any], name: str = "volumes/raw", **attributes: Any) -> Path:
    with h5py.File(path, "a") as file:
        stored = file.create_dataset(name, data=data, chunks=True, compression="gzip")
        stored.attrs.update(attributes)
    return path


def save_mrc(path: Path, data: NDArray[Any], size: tuple[float, ...] = (), origin: tuple[float, ...] = (0, 0, 0)) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.set_volume()
        if size:
            file.voxel_size = size[::-1]
        file.header.origin = origin[::-1]
    return path


def save_png(folder: Path, data: NDArray[Any], first: int = 8) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(data, first):
        Image.fromarray(pixels).save(folder / f"em_{number}.png")
    return folder


def save_n5(folder: Path, data: NDArray[Any], **attributes: Any) -> Path:
    """Write a dataset with tensorstore. `data` has the axes reversed, since x is the first of N5."""
    stored = {
        "dimensions": data.shape[::-1],
        "blockSize": BLOCK[::-1][: data.ndim] + (1,) * (data.ndim - 3),
        "dataType": data.dtype.name,
        "compression": {"type": "gzip"},
    }
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": stored}
    tensorstore.open(spec, create=True).result().write(data.transpose()).result()
    file = folder / "attributes.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **attributes}))
    return folder


def save_precomputed(folder: Path, data: NDArray[Any], kind: str = "image", encoding: str = "raw", **more: Any) -> Path:
    """Write a volume with tensorstore, from (z, y, x) or (channel, z, y, x)."""
    scale = {"size": data.shape[:-4:-1], "resolution": [4.5, 8, 30], "voxel_offset": [-7, 100, 3], "encoding": encoding}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    channels = data.shape[0] if data.ndim == 4 else 1
    multiscale = {"type": kind, "data_type": data.dtype.name, "num_channels": channels}
    stored = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{folder}/",
            "multiscale_metadata": multiscale,
            "scale_metadata": {"key": "s0", "chunk_size": BLOCK[::-1], **scale, **more},
        },
        create=True,
    ).result()
    stored.write(data.reshape(channels, *data.shape[-3:]).transpose(3, 2, 1, 0)).result()
    return folder
