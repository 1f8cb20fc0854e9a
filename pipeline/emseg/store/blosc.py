"""Blosc that does not read beyond the end of a chunk.

A chunk says in its header how long it is. The library trusts that, and of a chunk that is cut short it reads on, into
whatever lies behind in memory: voxels that nobody wrote, without an error.
"""

from __future__ import annotations

from typing import Any

import numcodecs  # type: ignore[import-untyped]
import zarr
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

HEADER = 16
"""Bytes of a chunk's header; the last four hold the chunk's length."""


class WholeBlosc(numcodecs.Blosc):  # type: ignore[misc]
    """The codec ``blosc`` of Zarr v2, for whole chunks alone."""

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The bytes of a chunk.

        Raises
        ------
        ValueError
            If the chunk is not as long as it says.
        """
        _refuse_part(memoryview(buf).cast("B"))
        return super().decode(buf, out)


class WholeBloscCodec(BloscCodec):
    """The codec ``blosc`` of Zarr v3, for whole chunks alone."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        _refuse_part(memoryview(chunk_bytes.to_bytes()))
        return await super()._decode_single(chunk_bytes, chunk_spec)


def use_whole_blosc() -> None:
    """Make Zarr use these two from now on, in this process."""
    numcodecs.register_codec(WholeBlosc)
    register_codec("blosc", WholeBloscCodec)
    zarr.config.set({"codecs.blosc": f"{WholeBloscCodec.__module__}.{WholeBloscCodec.__qualname__}"})


def _refuse_part(chunk: memoryview) -> None:
    said = int.from_bytes(chunk[HEADER - 4 : HEADER], "little")
    if len(chunk) < HEADER or said != len(chunk):
        raise ValueError(f"a Blosc chunk of {len(chunk)} bytes says that it has {said}")
