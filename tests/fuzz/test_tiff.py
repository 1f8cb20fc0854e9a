"""Test damaged TIFF: multi-page files, folders of slices, and their directories, descriptions and names."""

from __future__ import annotations

import re
import struct
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_cases import NUMBERS, TEXTS, Attempt, Property, check, damaged_bytes, damaged_json, fuzz, try_in_child
from hypothesis import strategies as st
from tifffile import TiffFile, TiffWriter

from emseg.flows.ingest import ingest
from emseg_core.box import Box
from emseg_core.errors import EmsegError, VolumeError
from emseg_core.specs.volume import VolumeSpec
from emseg_core.store.exports.new_volume import slab_layout
from emseg_core.store.stacks.tiff import open_tiff
from emseg_core.store.volumes.volume import open_volume

SHAPE = (5, 19, 23)

PAGES = {"metadata": None, "photometric": "minisblack"}
SIZE = {
    "UUID": "urn:uuid:00000000-0000-0000-0000-000000000000",
    "axes": "ZYX",
    "PhysicalSizeZ": 40,
    "PhysicalSizeY": 4,
    "PhysicalSizeX": 4,
}
UNITS = {f"PhysicalSize{axis}Unit": "nm" for axis in "XYZ"}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pages": PAGES | {"rowsperstrip": 5},
    "bigtiff": PAGES | {"bigtiff": True, "dtype": "uint16"},
    "big-endian": {"byteorder": ">", "dtype": "float32"},
    "tiles": {"tile": (16, 16), "dtype": "uint16"},
    "tiles-zlib": PAGES | {"tile": (16, 16), "compression": "zlib", "predictor": True, "bigtiff": True},
    "strips-zlib": {"compression": "zlib", "rowsperstrip": 5, "dtype": "float32"},
    "lzma": PAGES | {"compression": "lzma"},
    "mixed": PAGES | {"compression": ["zlib", None, "zlib", None, None]},
    "imagej": {"imagej": True, "resolution": (0.25, 0.25), "metadata": {"axes": "ZYX", "spacing": 40, "unit": "nm"}},
    "imagej-first": {"imagej": True, "byteorder": ">", "dtype": "uint16", "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": SIZE | UNITS},
    "ome-zlib": {"ome": True, "metadata": SIZE, "compression": "zlib", "bigtiff": True},
    "folder": {"resolution": (2.5e6, 2.5e6), "resolutionunit": "CENTIMETER"},
    "folder-zlib": PAGES | {"compression": "zlib", "dtype": "uint16"},
}
NAMES = st.sampled_from(sorted(LAYOUTS))


def voxels(dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(7).integers(0, 250, SHAPE).astype(dtype)


@cache
def stacks() -> dict[str, dict[str, bytes]]:
    """Return the files of a valid stack of each layout, by relative path."""
    found = {}
    for name, layout in LAYOUTS.items():
        options = dict(layout)
        slices = voxels(options.pop("dtype", "uint8"))
        if name.startswith("folder"):
            found[name] = {f"slices/s{number}.tif": written(page, **options) for number, page in enumerate(slices)}
        elif name == "mixed":
            found[name] = {"stack.tif": written(*slices, **options)}
        else:
            found[name] = {"stack.tif": written(slices, **options)}
    first = found["imagej-first"]
    raw = bytearray(first["stack.tif"])
    raw[slice(*pointers(bytes(raw))[1])] = bytes(4)  # for large stacks, ImageJ states only where the first slice is
    first["stack.tif"] = bytes(raw)
    return found


def written(*images: np.ndarray, **options: Any) -> bytes:
    file = BytesIO()
    kind = {name: options.pop(name) for name in ("bigtiff", "byteorder", "imagej", "ome") if name in options}
    with TiffWriter(file, **kind) as writer:
        for number, image in enumerate(images):
            writer.write(
                image, **{name: value[number] if isinstance(value, list) else value for name, value in options.items()}
            )
    return file.getvalue()


@cache
def entries(raw: bytes) -> list[tuple[int, int]]:
    """Return the start and end of each entry of each directory."""
    with TiffFile(BytesIO(raw)) as tif:
        return [(tag.offset, tag.offset + tif.tiff.tagsize) for page in tif.pages for tag in page.aspage().tags]


@cache
def pointers(raw: bytes) -> list[tuple[int, int]]:
    """Return the start and end of each pointer to a directory."""
    with TiffFile(BytesIO(raw)) as tif:
        size = tif.tiff.offsetsize
        starts = [page.offset + tif.tiff.tagnosize + len(page.aspage().tags) * tif.tiff.tagsize for page in tif.pages]
        return [(start, start + size) for start in (size, *starts)]


@cache
def long_chain() -> bytes:
    """Make a file with more pages than tifffile remembers when it follows them."""
    return written(*voxels()[[0] * 130, :2, :3], compression="zlib", **PAGES)


def put(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    return folder / Path(next(iter(files))).parts[0]


def sound_voxels(name: str) -> np.ndarray:
    return voxels(LAYOUTS[name].get("dtype", "uint8"))


def everything(path: Path) -> np.ndarray:
    """Read all that `emseg ingest` reads of a stack: its header, then all slices slab by slab."""
    with open_tiff(path) as stack:
        shard, chunk = slab_layout(stack.shape, stack.dtype)
        spec = VolumeSpec(stack.shape, stack.dtype, chunk)
        if stack.stated is not None:
            assert min(stack.stated.scale) > 0
            assert np.isfinite(stack.stated.scale).all()
        slabs = []
        for start in range(0, spec.shape[0], shard[0]):
            stop = min(start + shard[0], spec.shape[0])
            slabs.append(stack.read(start, stop))
            assert (slabs[-1].shape, slabs[-1].dtype) == ((stop - start, *spec.shape[1:]), np.dtype(spec.dtype))
    return np.concatenate(slabs)


def use(path: Path) -> None:
    everything(path)


def drawn(data: st.DataObject) -> tuple[str, dict[str, bytes], str]:
    """Draw the name and files of a valid stack, and the file to damage."""
    files = dict(stacks()[name := data.draw(NAMES)])
    return name, files, data.draw(st.sampled_from(sorted(files)))


@fuzz(cases=500)
def stored(data: st.DataObject, folder: Path) -> Attempt:
    """Draw files with bytes truncated, changed, inserted or removed. A truncated stack must never pass as a shorter one."""
    name, files, file = drawn(data)
    sound = files[file]
    files[file] = damaged_bytes(data, sound)
    path = put(files, folder)

    def attempt() -> None:
        found = everything(path)
        if len(files[file]) < len(sound) and sound.startswith(files[file]):
            np.testing.assert_array_equal(found, sound_voxels(name))

    return attempt


WIDTH, LENGTH, DEPTH, ROWS, TILE_WIDTH, TILE_LENGTH = 256, 257, 32997, 278, 322, 323
SEGMENTS = (273, 279, 324, 325)
"""Tags for the offsets and lengths of strips and tiles."""
CODES = [WIDTH, LENGTH, DEPTH, ROWS, TILE_WIDTH, TILE_LENGTH, *SEGMENTS, 254, 258, 259, 262, 266, 269, 270, 277, 282, 284]
CODES += [296, 317, 320, 330, 338, 339, 347, 513, 700, 32995, 32996, 32998, 33628, 33629, 34361, 34412, 42113, 50838, 50839]
"""Tags that readers of TIFF, and of formats based on it, interpret."""


def order(raw: bytes | bytearray) -> str:
    return ">" if raw.startswith(b"MM") else "<"


def entry(raw: bytes | bytearray, place: tuple[int, int]) -> tuple[int, int, int, bytes]:
    """Return the tag, type, count and value of an entry."""
    return struct.unpack(order(raw) + ("HHI4s" if place[1] - place[0] == 12 else "HHQ8s"), raw[slice(*place)])


def set_entry(raw: bytearray, place: tuple[int, int], code: int, kind: int, count: int, value: bytes) -> None:
    form = "HHI4s" if place[1] - place[0] == 12 else "HHQ8s"
    raw[slice(*place)] = struct.pack(order(raw) + form, code, kind, count, value)


def odd(raw: bytes | bytearray, size: int) -> st.SearchStrategy[int]:
    """Draw numbers of `size` bytes: plausible offsets, counts, or values far too large."""
    large = [number % 256**size for number in NUMBERS if isinstance(number, int)]
    return st.one_of(st.sampled_from(large), st.integers(0, len(raw) + 8), st.integers(0, 64)).map(lambda n: n % 256**size)


def damaged_directories(data: st.DataObject, sound: bytes) -> bytes:
    """Draw a file with changed tags, types, counts or values, or with one directory entry in another's place."""
    raw = bytearray(sound)
    places = entries(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        code, kind, count, value = entry(raw, place)
        match data.draw(st.sampled_from(["tag", "type", "count", "value", "value", "value", "claim", "copy"])):
            case "tag":
                code = data.draw(st.sampled_from(CODES))
            case "type":
                kind = data.draw(st.integers(0, 19))
            case "count":
                count = data.draw(odd(raw, len(value)))
            case "value":
                form = data.draw(st.sampled_from("BHI" if len(value) == 4 else "BHIQ"))
                number = data.draw(odd(raw, struct.calcsize(form)))
                value = struct.pack(order(raw) + form, number).ljust(len(value), b"\0")
            case "claim":
                code, kind, count = data.draw(st.sampled_from(CODES[:6])), 4, 1
                value = struct.pack(order(raw) + "I", 2 ** data.draw(st.integers(5, 31))).ljust(len(value), b"\0")
            case "copy":
                code, kind, count, value = entry(raw, data.draw(st.sampled_from(places)))
        set_entry(raw, place, code, kind, count, value)
    return bytes(raw)


@fuzz(cases=700)
def directories(data: st.DataObject, folder: Path) -> Attempt:
    _, files, file = drawn(data)
    files[file] = damaged_directories(data, files[file])
    path = put(files, folder)
    return lambda: use(path)


@fuzz(cases=200)
def gaps(data: st.DataObject, folder: Path) -> Attempt:
    """Draw directories that list too few strips or tiles. Missing data must never pass as voxels."""
    name, files, file = drawn(data)
    raw = bytearray(files[file])
    places = [place for place in entries(files[file]) if entry(raw, place)[0] in SEGMENTS]
    for place in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=4, unique=True)):
        code, kind, count, value = entry(raw, place)
        set_entry(raw, place, code, kind, data.draw(st.integers(0, count)), value)
    files[file] = bytes(raw)
    path = put(files, folder)
    return lambda: np.testing.assert_array_equal(everything(path), sound_voxels(name))


@fuzz(cases=200)
def chains(data: st.DataObject, folder: Path) -> Attempt:
    """Draw page chains that loop, jump, or leave the file, which may claim another format."""
    _, files, file = drawn(data)
    if data.draw(st.booleans()):
        files, file = {"stack.tif": long_chain()}, "stack.tif"
    raw = bytearray(files[file])
    places = pointers(files[file])
    heads = [bytes(raw[slice(*place)]) for place in places]
    for _ in range(data.draw(st.integers(1, 2))):
        start, stop = data.draw(st.sampled_from(places) | st.just(places[-1]))
        if data.draw(st.booleans()):
            raw[start:stop] = data.draw(st.sampled_from(heads))
        else:
            number = data.draw(odd(raw, stop - start))
            raw[start:stop] = number.to_bytes(stop - start, "little" if order(raw) == "<" else "big")
    for place in data.draw(st.lists(st.sampled_from(entries(files[file])[:12]), max_size=2)):
        _, kind, count, value = entry(raw, place)
        set_entry(raw, place, data.draw(st.sampled_from(CODES)), kind, count, value)
    files[file] = bytes(raw)
    path = put(files, folder)
    return lambda: use(path)


@cache
def descriptions() -> dict[str, bytes]:
    """Return descriptions of the first page as programs write them."""
    found = {}
    for name in ("plain", "imagej", "ome"):
        with TiffFile(BytesIO(stacks()[name]["stack.tif"])) as tif:
            found[name] = tif.pages.first.description.encode()
    found["ome"] = re.sub(rb".*<OME [^>]*>", b"<OME>", found["ome"])
    along = b'<ModuloAlongZ Type="angle" Start="0" Step="1" End="4"/>'
    notes = b'<StructuredAnnotations><XMLAnnotation ID="a" Namespace="modulo"><Value><Modulo>' + along
    notes += b'</Modulo></Value></XMLAnnotation></StructuredAnnotations><Image><AnnotationRef ID="a"/>'
    found["modulo"] = re.sub(rb"<Image [^>]*>", notes, found["ome"])
    return found


WORDS = st.one_of(
    st.sampled_from([*map(str, NUMBERS[:-9]), *map(str, NUMBERS[-7:]), "9" * 4000, "9" * 5000, "300000000", "1e-300"]),
    st.integers(0, 12).map(str),
    st.sampled_from(TEXTS),
)


@fuzz(cases=500)
def described(data: st.DataObject, folder: Path) -> Attempt:
    """Draw files whose tifffile, ImageJ or OME description does not fit the pages, or is not a description at all."""
    text = descriptions()[kind := data.draw(st.sampled_from(sorted(descriptions())))]
    if kind == "plain" and data.draw(st.booleans()):
        text = damaged_json(data, text)
    elif data.draw(st.integers(0, 5)) == 0:
        text = damaged_bytes(data, text)
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            found = [match.span() for match in re.finditer(data.draw(st.sampled_from([rb"\d+", rb"[\w.]+"])), text)]
            start, stop = data.draw(st.sampled_from(found))
            other = text[slice(*data.draw(st.sampled_from(found)))]
            word = data.draw(WORDS.map(lambda word: word.encode("utf-8", "surrogatepass")) | st.just(other))
            text = text[:start] + word + text[stop:]
    apart = {"compression": "zlib"} if data.draw(st.booleans()) else {}
    path = put({"stack.tif": written(voxels(), description=text, resolution=(0.25, 0.25), **PAGES, **apart)}, folder)
    return lambda: use(path)


@fuzz(cases=200)
def names(data: st.DataObject, folder: Path) -> Attempt:
    """Draw folders of slices with arbitrary names, and with other things beside them."""
    (folder / "slices").mkdir()
    letters = st.sampled_from([*"0123456789ab_ .-", "\n", "\x1b", "\u202e", "\udcff", "é", "٣"])
    stems = st.text(letters, min_size=1, max_size=8) | st.integers(0, 3).map(str) | st.sampled_from(["9" * 200, "0" * 200])
    for stem in data.draw(st.lists(stems, min_size=1, max_size=4, unique=True)):
        file = folder / "slices" / f"{stem}{data.draw(st.sampled_from(['.tif', '.tif', '.TIFF', '.png']))}"
        if data.draw(st.integers(0, 9)) == 0:
            file.mkdir()
        else:
            file.write_bytes(stacks()["folder"]["slices/s0.tif"])
    return lambda: use(folder / "slices")


@fuzz(cases=150)
def ingested(data: st.DataObject, folder: Path) -> Attempt:
    """Run all of `emseg ingest`: a damaged stack gives a complete volume or leaves nothing behind."""
    _, files, file = drawn(data)
    directories = data.draw(st.booleans())
    files[file] = damaged_directories(data, files[file]) if directories else damaged_bytes(data, files[file])
    path = put(files, folder)
    size = data.draw(st.sampled_from([None, (40, 4, 4)]))

    def attempt() -> None:
        with tempfile.TemporaryDirectory() as place:
            target = Path(place, "volume.zarr")
            try:
                made = ingest(path, target, voxel_size=size)
            except EmsegError:
                assert list(Path(place).iterdir()) == []
                raise
            assert list(Path(place).iterdir()) == [target]
            volume = open_volume(target)
            assert volume.spec == made.spec
            np.testing.assert_array_equal(volume.read(Box.of_shape(made.spec.shape)), everything(path))

    return attempt


@pytest.mark.parametrize("name", [name for name, value in list(globals().items()) if isinstance(value, Property)])
def test_tiff(name: str) -> None:
    check(try_in_child(__file__, name), globals()[name].wanted)


@pytest.mark.parametrize("name", LAYOUTS)
def test_sound_stacks_pass(tmp_path: Path, name: str) -> None:
    """Otherwise the tests above would pass on anything."""
    path = put(stacks()[name], tmp_path)
    np.testing.assert_array_equal(everything(path), sound_voxels(name))
    ingest(path, tmp_path / "volume.zarr")
    np.testing.assert_array_equal(open_volume(tmp_path / "volume.zarr").read(Box.of_shape(SHAPE)), sound_voxels(name))
    for file in stacks()[name]:
        (tmp_path / file).write_bytes(stacks()[name][file][: len(stacks()[name][file]) // 2])
    with pytest.raises(VolumeError):
        use(path)
