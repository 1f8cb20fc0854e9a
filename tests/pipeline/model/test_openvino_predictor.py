"""Test that OpenVINO agrees with torch except for rounding, and gives the same bytes at any position and in any batch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_network, run
from numpy.typing import NDArray
from strategies import model_specs, valid_tiles

from emseg_core.box import Triple
from emseg_core.canary import batch_is_free, canary_of
from emseg_core.errors import DeviceError, MemoryShortageError
from emseg_core.installation import install_hint
from emseg_core.model import backend
from emseg_core.model.file import ModelFile, load_model, save_model, weights_of
from emseg_core.model.predictor import TorchPredictor
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Backend, Precision

pytest.importorskip("openvino")
from emseg_core.model.compiled import MAX_COMPILED_SHAPES
from emseg_core.model.openvino_predictor import OpenVinoPredictor

PLANAR = ModelSpec.unet(width=3, depth=2)
SOLID = ModelSpec.unet(width=3, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))
BOTH = pytest.mark.parametrize("spec", [PLANAR, SOLID])
HERE = pytest.mark.parametrize("precision", ["float32", *backend.low_precisions("cpu")])
"""Precisions that this machine supports."""


def in_memory(spec: ModelSpec, seed: int = 0) -> ModelFile:
    """Make a model file with weights drawn from the seed."""
    return ModelFile(spec, {}, "digest", weights_of(random_network(spec, seed)))


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@given(st.data())
@settings(max_examples=60)
def test_logits_are_those_of_the_network(data: st.DataObject) -> None:
    spec = data.draw(model_specs(most_flops=10**6))
    tile, count = data.draw(valid_tiles(spec)), data.draw(st.integers(1, 2))
    tiles = noise(count, *tile)
    expected = np.stack([run(random_network(spec), one) for one in tiles])
    logits = OpenVinoPredictor(in_memory(spec), threads=1).predict(tiles)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_as_far_from_the_truth_as_torch_is(tmp_path: Path) -> None:
    """The network has the paper's depth, where rounding errors add up."""
    spec = ModelSpec.unet(width=8, depth=4)
    save_model(tmp_path / "m", random_network(spec), {})
    model, tiles = load_model(tmp_path / "m"), noise(1, *spec.tile_for((1, 100, 100)))
    truth = run(model.network().double(), tiles[0])
    ours = np.abs(OpenVinoPredictor(model, threads=1).predict(tiles)[0] - truth).max()
    theirs = np.abs(TorchPredictor(model.network(), threads=1).predict(tiles)[0] - truth).max()
    assert ours <= 4 * theirs


@BOTH
def test_the_same_bytes_each_time(spec: ModelSpec) -> None:
    tiles = noise(1, *spec.tile_for((3, 20, 20)))
    one, other = (OpenVinoPredictor(in_memory(spec), threads=1) for _ in range(2))
    first = one.predict(tiles).tobytes()
    assert one.predict(tiles).tobytes() == first
    assert other.predict(tiles).tobytes() == first
    before = tiles.copy()
    np.testing.assert_array_equal(tiles, before)


@BOTH
@HERE
def test_a_voxel_has_the_same_bytes_wherever_it_lies_in_a_tile(spec: ModelSpec, precision: Precision) -> None:
    predictor = OpenVinoPredictor(in_memory(spec), 1, precision)
    tile = spec.tile_for((4, 40, 40))
    volume = noise(*(length + 2 * lattice for length, lattice in zip(tile, spec.lattice, strict=True)))
    here = predictor.predict(volume[tuple(slice(length) for length in tile)][None])[0]
    for axis in range(3):
        shift: Triple = tuple(spec.lattice[axis] if axis == i else 0 for i in range(3))  # type: ignore[assignment]
        there = predictor.predict(volume[tuple(slice(s, s + length) for s, length in zip(shift, tile, strict=True))][None])[0]
        kept = (
            [slice(s, None) for s in shift],
            [slice(None, length - s) for s, length in zip(shift, here.shape[1:], strict=True)],
        )
        ours, theirs = here[(slice(None), *kept[0])], there[(slice(None), *kept[1])]
        assert ours.tobytes() == theirs.tobytes(), f"axis {axis}"


@BOTH
@HERE
def test_a_batch_changes_no_byte(spec: ModelSpec, precision: Precision) -> None:
    assert batch_is_free(OpenVinoPredictor(in_memory(spec), 1, precision), 3)


@BOTH
@HERE
def test_both_libraries_agree_in_a_low_precision(spec: ModelSpec, precision: Precision) -> None:
    """They agree as closely as each does with float32."""
    model, tiles = in_memory(spec), noise(1, *spec.tile_for((3, 20, 20)))
    exact = OpenVinoPredictor(model, threads=1).predict(tiles)
    low = [backend.open_predictor(model, library, precision, 1, "cpu").predict(tiles) for library in get_args(Backend)]
    assert [one.dtype for one in low] == [np.float32] * 2
    scale = np.abs(exact).max()
    assert all(np.abs(one - exact).max() < 0.05 * scale for one in low)
    if precision != "float32":
        assert all((one != exact).any() for one in low)


def test_a_precision_that_the_hardware_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "has_fast_bfloat16", lambda: False)
    assert backend.low_precisions("cpu") == ()
    for library in get_args(Backend):
        with pytest.raises(DeviceError, match="in bfloat16, but the CPU here is fast only in float32: use --precision"):
            backend.open_predictor(in_memory(PLANAR), library, "bfloat16", 1, "cpu")
    monkeypatch.setattr(backend, "has_fast_bfloat16", lambda: True)
    assert backend.low_precisions("cpu") == ("bfloat16",)
    with pytest.raises(DeviceError, match="in float16, but the CPU here is fast only in float32 and bfloat16: use"):
        backend.open_predictor(in_memory(PLANAR), "openvino", "float16", 1, "cpu")


def test_networks_for_few_shapes_are_kept() -> None:
    predictor = OpenVinoPredictor(in_memory(PLANAR), threads=1)
    tiles = [noise(1, *PLANAR.tile_for((1, side, side))) for side in (4, 8, 12, 16)]
    first = [predictor.predict(one).tobytes() for one in tiles]
    assert len(predictor._compiled._requests) == MAX_COMPILED_SHAPES
    assert [predictor.predict(one).tobytes() for one in tiles] == first


SIGNALLED = """
import ctypes, signal, sys
from pathlib import Path
import numpy as np
from emseg_core.model.backend import open_predictor
from emseg_core.model.file import load_model

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

model = load_model(Path(sys.argv[1]))
predictors = [open_predictor(model, "openvino", "float32", 1, "cpu") for _ in range(2)]
tile = model.spec.tile_for((1, 8, 8))
for predictor in predictors:
    predictor.predict(np.zeros((1, *tile), np.float32))
del predictor
while predictors:
    del predictors[0]
stack = Stack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
spans = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
print(not stack.start or any(int(a, 16) <= stack.start < int(b, 16) for a, b in spans))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the stacks of other systems are not known here")
def test_a_signal_finds_a_stack_after_predictors_have_come_and_gone(tmp_path: Path) -> None:
    """OpenVINO takes the stack for signals back with a plugin, and Ctrl-C would crash a run that has used two in turn."""
    save_model(tmp_path / "model.safetensors", random_network(PLANAR, 0), {})
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(tmp_path / "model.safetensors")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_numerics_say_what_decides_the_last_bits() -> None:
    predictor, tile = OpenVinoPredictor(in_memory(PLANAR), threads=2), PLANAR.tile_for((1, 8, 8))
    numerics = predictor.numerics(tile)
    assert numerics.library == "openvino"
    assert numerics.backend.startswith("openvino 20")
    assert (numerics.precision, numerics.threads) == ("float32", 2)
    assert numerics.canary == canary_of(predictor, tile)
    assert numerics.canary == OpenVinoPredictor(in_memory(PLANAR), threads=2).numerics(tile).canary


@pytest.mark.parametrize("spec", [PLANAR, SOLID, ModelSpec.unet(width=16, depth=1)])
@pytest.mark.parametrize("scale", [1e8, 1e12, 1e20, 1e30])
def test_a_network_that_overflows_does_not_look_sound(spec: ModelSpec, scale: float) -> None:
    """A rectifier that maps NaN to 0 would give finite logits, and silently wrong labels."""
    network = random_network(spec, dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    model, tiles = ModelFile(spec, {}, "digest", weights_of(network)), noise(1, *spec.tile_for((2, 8, 8)))
    assert not np.isfinite(TorchPredictor(network, threads=1).predict(tiles)).any()
    for precision in ("float32", *backend.low_precisions("cpu")):
        assert not np.isfinite(OpenVinoPredictor(model, 1, precision).predict(tiles)).any()


def test_too_little_memory() -> None:
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 18, 1, 1 << 14, 1 << 14), (0, 0, 0, 0))
    with pytest.raises(MemoryShortageError):
        OpenVinoPredictor(in_memory(PLANAR), threads=1).predict(endless)


def test_which_library_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_memory(PLANAR)
    assert backend.default_backend("cpu") == "openvino"
    assert backend.default_backend("cuda") == "torch"
    assert isinstance(backend.open_predictor(model, "torch", "float32", 1, "cpu"), TorchPredictor)
    assert isinstance(backend.open_predictor(model, "openvino", "float32", 1, "cpu"), OpenVinoPredictor)
    with pytest.raises(DeviceError, match="OpenVINO runs on CPUs, not on cuda: use --backend torch"):
        backend.open_predictor(model, "openvino", "float32", 1, "cuda")
    monkeypatch.setitem(sys.modules, "emseg_core.model.openvino_predictor", None)
    with pytest.raises(DeviceError, match="OpenVINO, which is not installed here.*" + re.escape(install_hint("openvino"))):
        backend.open_predictor(model, "openvino", "float32", 1, "cpu")
    monkeypatch.setattr(backend, "find_spec", lambda _: None)
    assert backend.default_backend("cpu") == "torch"
