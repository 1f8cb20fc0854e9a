"""Chunks of Zarr that are decompressed no further than to the bytes that their metadata declare.

zarr-python lets each codec make what it makes, and looks at how much that is when it is in memory.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

from emseg.store.decompress import TooLargeError, decompress
from emseg.store.remote import MOST_METADATA

COMPRESSORS = ("gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4")
"""Those that can make much of little, as numcodecs calls them."""
OF_OBJECTS = ("pickle", "json2", "msgpack2", "categorize", "vlen-array", "vlen-bytes", "vlen-utf8")
"""Codecs of numcodecs for things other than numbers; some take memory for as many as a chunk says that there are."""
WIDEST = 16
"""Most bytes of a number that a filter works with."""
ROOM = 2**16
"""What may come on top where one compressor follows on another, or on a shard: even in vain they add little."""
PER_CHUNK = 128
"""The same for each chunk inside a shard, its place in the index included."""


@dataclass(frozen=True)
class Bounded(BytesBytesCodec):
    """A compressor of Zarr v3 that stops where a chunk is longer than it may be."""

    codec: BytesBytesCodec
    decoder: Any
    """The same of numcodecs."""
    inner: tuple[int, ...] | None
    """Shape of the chunks inside, if it compresses shards; empty if it compresses what another codec has compressed."""

    is_fixed_size = False

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> Self:
        return replace(self, codec=self.codec.evolve_from_array_spec(array_spec))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        most = _bytes(chunk_spec)
        if self.inner is not None:
            chunks = math.prod(chunk_spec.shape) // math.prod(self.inner) if self.inner else 0
            most += most // 8 + ROOM + PER_CHUNK * chunks
        found = await asyncio.to_thread(decompress, self.decoder, chunk_data.as_array_like(), most)
        return chunk_spec.prototype.buffer.from_bytes(found)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_data, chunk_spec)


@dataclass(frozen=True)
class BoundedV2(V2Codec):
    """Filters and compressor of Zarr v2, which stop where a chunk is longer than it may be."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        if chunk_spec.dtype.to_native_dtype().hasobject:
            return await super()._decode_single(chunk_bytes, chunk_spec)
        most = math.prod(chunk_spec.shape) * WIDEST * 2 + ROOM if self.filters else _bytes(chunk_spec)
        filters: Any = tuple(_Within(codec, most) for codec in self.filters or ()) or None
        compressor: Any = _Within(self.compressor, most) if self.compressor else None
        within = V2Codec(filters, compressor)
        return await within._decode_single(chunk_bytes, chunk_spec)


class _Within:
    """A codec of numcodecs that decodes no more than so many bytes; of it Zarr asks nothing else when it reads."""

    def __init__(self, codec: Any, most: int) -> None:
        if codec.codec_id in OF_OBJECTS:
            raise ValueError(f"the codec {codec.codec_id!r} is not for numbers")
        _refuse_wide(codec.get_config())
        self._codec = codec
        self._most = most

    def decode(self, data: Any) -> Any:
        return decompress(self._codec, data, self._most)


class BoundedPipeline(BatchedCodecPipeline):
    """The codecs of an array, each of which stops where a chunk is longer than it may be."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], *, batch_size: int | None = None) -> Self:
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

    async def read_batch(self, batch_info: Iterable[Any], out: NDBuffer, drop_axes: tuple[int, ...] = ()) -> None:
        batch = list(batch_info)
        try:
            await super().read_batch(batch, out, drop_axes)
        except TooLargeError as error:
            names = ", ".join(name for getter, *_ in batch if (name := getattr(getter, "path", "")))
            if not names:  # inside a shard, which has one
                raise
            raise ValueError(f"the chunk {names}: {error}") from error


def use_bounded_codecs() -> None:
    """Make Zarr decompress in this way from now on, in this process."""
    register_pipeline(BoundedPipeline)
    zarr.config.set({"codec_pipeline.path": f"{BoundedPipeline.__module__}.{BoundedPipeline.__qualname__}"})


def most_stored(array: zarr.Array[Any]) -> int:
    """Most bytes that a chunk, or a shard, of an array has where it is stored, and a little more."""
    try:
        shape = array.shards or array.chunks
    except Exception:  # grids of chunks other than regular ones have none, and are refused
        return MOST_METADATA
    width = 2 * WIDEST if array.filters else array.dtype.itemsize
    chunks = math.prod(shape) // math.prod(array.chunks)
    most = math.prod(shape) * width
    return max(MOST_METADATA, most + most // 8 + ROOM + PER_CHUNK * chunks)


def _bounded(codec: BytesBytesCodec, inner: tuple[int, ...] | None) -> BytesBytesCodec:
    """A codec that stops in time; unless it does so anyway."""
    if isinstance(codec, Bounded):
        return codec
    told = codec.to_dict()
    name = str(told["name"]).removeprefix("numcodecs.")
    if name not in COMPRESSORS:
        return codec
    configuration = told.get("configuration") if name == "lzma" else None  # all others can be read without
    decoder = numcodecs.get_codec({"id": name, **(configuration if isinstance(configuration, dict) else {})})
    return Bounded(codec, decoder, inner)


def _bytes(spec: ArraySpec) -> int:
    """Bytes of a chunk."""
    return math.prod(spec.shape) * spec.dtype.to_native_dtype().itemsize


def _refuse_wide(configuration: dict[str, Any]) -> None:
    """Refuses a filter that works with longer things than numbers, as many bytes as it says for each voxel."""
    for key, value in configuration.items():
        if ("dtype" in key or key == "astype") and isinstance(value, str) and np.dtype(value).itemsize > WIDEST:
            raise ValueError(f"a filter works with the type {value!r}, which is not for numbers")
