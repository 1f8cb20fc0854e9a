"""Codecs that decompress a chunk of Zarr no further than to the size that its metadata declare.

zarr-python lets each codec decompress everything, and compares the size only when all is in memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.abc.buffer import Buffer, NDBuffer
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from emseg_core.store.files.decompress import TooLargeError, decompress
from emseg_core.store.files.faults import leading_error
from emseg_core.store.files.remote import MAX_METADATA_BYTES

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec

COMPRESSORS = ("gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4")
"""Codecs that can expand a few bytes to many, by their names in numcodecs."""
OBJECT_CODECS = ("pickle", "json2", "msgpack2", "categorize", "vlen-array", "vlen-bytes", "vlen-utf8")
"""Codecs of numcodecs for objects other than numbers; some allocate memory for as many as a chunk declares."""
MAX_ITEM_BYTES = 16
"""Most bytes of a number that a filter works with."""
CODEC_OVERHEAD_BYTES = 2**16
"""Bytes that a compressor may add to incompressible data, where another one compresses its output."""
CHUNK_OVERHEAD_BYTES = 128
"""The same for each chunk inside a shard, including its entry in the index."""


@dataclass(frozen=True)
class Bounded(BytesBytesCodec):
    """A compressor of Zarr v3 that refuses to decompress a chunk beyond its declared size."""

    codec: BytesBytesCodec
    """The codec that it replaces."""
    decoder: Any
    """The same codec in numcodecs."""
    inner: tuple[int, ...] | None
    """Shape of the inner chunks if it compresses shards; empty if it compresses the output of another codec; else None."""

    is_fixed_size = False

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Return the size after encoding, as the replaced codec computes it."""
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        """Return the codec adapted to an array, as Zarr asks for."""
        return replace(self, codec=self.codec.evolve_from_array_spec(array_spec))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        most = _bytes(chunk_spec)
        if self.inner is not None:
            chunks = math.prod(chunk_spec.shape) // math.prod(self.inner) if self.inner else 0
            most += most // 8 + CODEC_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES * chunks
        found = await asyncio.to_thread(decompress, self.decoder, chunk_data.as_array_like(), most)
        return chunk_spec.prototype.buffer.from_bytes(found)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_data, chunk_spec)


@dataclass(frozen=True)
class BoundedV2(V2Codec):
    """Filters and compressor of Zarr v2 that refuse to decompress a chunk beyond its declared size."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        if chunk_spec.dtype.to_native_dtype().hasobject:
            return await super()._decode_single(chunk_bytes, chunk_spec)
        most = math.prod(chunk_spec.shape) * MAX_ITEM_BYTES * 2 + CODEC_OVERHEAD_BYTES if self.filters else _bytes(chunk_spec)
        filters: Any = tuple(_BoundedDecoder(codec, most) for codec in self.filters or ()) or None
        compressor: Any = _BoundedDecoder(self.compressor, most) if self.compressor else None
        bounded = V2Codec(filters, compressor)
        return await bounded._decode_single(chunk_bytes, chunk_spec)


class _BoundedDecoder:
    """A codec of numcodecs that decodes at most so many bytes, with the only method that Zarr uses for reading."""

    def __init__(self, codec: Any, most: int) -> None:
        if codec.codec_id in OBJECT_CODECS:
            raise ValueError(f"the codec {codec.codec_id!r} is not for numbers")
        _refuse_wide(codec.get_config())
        self._codec = codec
        self._most = most

    def decode(self, data: Any) -> Any:
        """Decode a chunk."""
        return decompress(self._codec, data, self._most)


class BoundedPipeline(BatchedCodecPipeline):
    """The codecs of an array, each of which refuses to decompress a chunk beyond its declared size."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
        """Build the pipeline from the codecs that the metadata name, replacing compressors.

        Raises
        ------
        ValueError
            If a filter is not for numbers.
        """
        plain = super().from_codecs(codecs, batch_size=batch_size)
        packed: tuple[int, ...] | None = None
        match plain.array_bytes_codec:
            case V2Codec(filters=filters, compressor=compressor):
                return replace(plain, array_bytes_codec=BoundedV2(filters, compressor))
            case ShardingCodec(chunk_shape=shape):
                packed = shape
            case BytesCodec():
                pass
            case _:
                packed = ()
        bounded: list[BytesBytesCodec] = []
        for codec in plain.bytes_bytes_codecs:
            bounded.append(_bounded(codec, packed))
            packed = packed or ()
        for filtering in plain.array_array_codecs:
            _refuse_wide(getattr(filtering, "codec_config", {}))
        return replace(plain, bytes_bytes_codecs=tuple(bounded))

    async def read_batch(self, batch_info: Iterable[Any], out: NDBuffer, drop_axes: tuple[int, ...] = ()) -> Any:
        """Read chunks, and name them in the error if one is too large.

        Returns
        -------
        Any
            What Zarr itself returns: nothing until 3.2, then how each chunk was found.

        Raises
        ------
        ValueError
            If a chunk decompresses to more than its metadata declare.
        Exception
            What a store or a codec raises; of several at once, the one that `leading_error` names.
        """
        batch = list(batch_info)
        try:
            try:
                return await super().read_batch(batch, out, drop_axes)
            except ExceptionGroup as group:  # from concurrent requests for parts of a shard
                error = leading_error(group)
            raise error
        except TooLargeError as error:
            names = ", ".join(name for getter, *_ in batch if (name := getattr(getter, "path", "")))
            if not names:  # inside a shard; the shard itself has a name
                raise
            raise ValueError(f"the chunk {names}: {error}") from error


def use_bounded_codecs() -> None:
    """Make Zarr use these codecs from now on, in this process."""
    register_pipeline(BoundedPipeline)
    zarr.config.set({"codec_pipeline.path": f"{BoundedPipeline.__module__}.{BoundedPipeline.__qualname__}"})


def max_stored_bytes(array: zarr.Array[Any]) -> int:
    """Return an upper bound of the stored size of a chunk or a shard of an array.

    Parameters
    ----------
    array
        The array.

    Returns
    -------
    int
        Bytes, at least `MAX_METADATA_BYTES`, so that the bound also holds for the metadata of the array.
    """
    try:
        shape = array.shards or array.chunks
    except Exception:  # irregular chunk grids have no such shape, and are refused elsewhere
        return MAX_METADATA_BYTES
    width = 2 * MAX_ITEM_BYTES if array.filters else array.dtype.itemsize
    chunks = math.prod(shape) // math.prod(array.chunks)
    most = math.prod(shape) * width
    return max(MAX_METADATA_BYTES, most + most // 8 + CODEC_OVERHEAD_BYTES + CHUNK_OVERHEAD_BYTES * chunks)


def _bounded(codec: BytesBytesCodec, inner: tuple[int, ...] | None) -> BytesBytesCodec:
    """Return a bounded version of a codec, or the codec itself if it cannot expand its input much."""
    if isinstance(codec, Bounded):
        return codec
    described = codec.to_dict()
    name = str(described["name"]).removeprefix("numcodecs.")
    if name not in COMPRESSORS:
        return codec
    configuration = described.get("configuration") if name == "lzma" else None  # the others decode without it
    decoder = numcodecs.get_codec({"id": name, **(configuration if isinstance(configuration, dict) else {})})
    return Bounded(codec, decoder, inner)


def _bytes(spec: ArraySpec) -> int:
    """Return the size of a decompressed chunk in bytes."""
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize


def _refuse_wide(configuration: dict[str, Any]) -> None:
    """Refuse a filter whose items are longer than numbers: it would allocate that many bytes for each voxel."""
    for key, value in configuration.items():
        if ("dtype" in key or key == "astype") and isinstance(value, str) and np.dtype(value).itemsize > MAX_ITEM_BYTES:
            raise ValueError(f"a filter works with the type {value!r}, which is not for numbers")
