"""Test on real GPUs what is tested on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from networks import random_network
from runs import CUBIC, PLANAR, TIE, bytes_of, one_pass

from emseg.flows.segment import segment
from emseg.flows.verify import verify
from emseg_core.canary import canary_of
from emseg_core.errors import MemoryShortageError
from emseg_core.grid.stitch import NOT_COMPUTED, classify, quantise, softmax
from emseg_core.model.device import process_gpu
from emseg_core.model.predictor import MAX_GPU_MEMORY_FRACTION, CudaPredictor, TorchPredictor
from emseg_core.normalise import normalised
from emseg_core.ports import Batch, Classifier
from emseg_core.specs.model import ModelSpec
from emseg_core.specs.numerics import Precision

pytestmark = pytest.mark.gpu
BROKEN = """
import numpy as np, torch
from networks import random_network
from runs import PLANAR
from emseg_core.errors import BlockError
from emseg_core.model.predictor import TorchPredictor

predictor = TorchPredictor(random_network(PLANAR, dtype=torch.float32), 1, "cuda")
try:
    torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]
    torch.cuda.synchronize()
except RuntimeError:
    pass
try:
    predictor.predict(np.zeros((1, *PLANAR.tile_for((1, 8, 8))), np.float32))
except BlockError as error:
    print(error.fault)
"""
OCCUPY = """
import sys, torch

taken = torch.empty(int(float(sys.argv[1]) * torch.cuda.mem_get_info()[1]), dtype=torch.uint8, device="cuda")
print("taken", flush=True)
sys.stdin.read()
"""
DRIVER = """
import sys
from emseg import segment

if __name__ == "__main__":
    volume, model, output = sys.argv[1:]
    segment(volume, output, model=model, cluster="cuda")
    print("torch" in sys.modules and sys.modules["torch"].cuda.is_initialized())
"""


def predictor(spec: ModelSpec, device: str, dtype: torch.dtype = torch.float32) -> TorchPredictor:
    """Return a predictor with random weights."""
    network = random_network(spec, dtype=dtype)
    return CudaPredictor(network, 1) if device == "cuda" else TorchPredictor(network, 1)


@pytest.mark.parametrize("spec", [PLANAR, CUBIC], ids=["2-D", "3-D"])
def test_predictions(spec: ModelSpec) -> None:
    """Repeated predictions give the same bytes, and agree with the CPU except for rounding."""
    tile = spec.tile_for((4, 40, 40))
    tiles = np.random.default_rng(0).normal(size=(2, *tile)).astype(np.float32)
    gpu, cpu = predictor(spec, "cuda"), predictor(spec, "cpu")
    once = gpu.predict(tiles)
    assert gpu.predict(tiles).tobytes() == once.tobytes()
    assert np.abs(once - cpu.predict(tiles)).max() < TIE
    assert len({canary_of(gpu, tile) for _ in range(10)}) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("spec", [PLANAR, CUBIC], ids=["2-D", "3-D"])
def test_what_is_stored_is_made_on_the_gpu(spec: ModelSpec, kind: str, dtype: torch.dtype) -> None:
    """The result is that of the host, except for the last bit of a probability."""
    tile = spec.tile_for((4, 40, 40))
    rng, table = np.random.default_rng(0), np.full((1, tile[0]), 120, np.float32)
    tiles = [rng.integers(0, 256, (1, *tile)).astype(kind) for _ in range(5)]
    batches = [Batch(voxels, table + np.float32(z), table / np.float32(3)) for z, voxels in enumerate(tiles)]
    gpu = predictor(spec, "cuda", dtype)
    assert isinstance(gpu, Classifier)
    assert not isinstance(predictor(spec, "cpu"), Classifier)
    found = list(gpu.classify(iter(batches), probabilities=True))
    assert len(found) == len(batches)
    for batch, (labels, stored) in zip(batches, found, strict=True):
        logits = gpu.predict(normalised(*batch))[0]
        np.testing.assert_array_equal(labels[0], classify(logits))
        assert stored is not None
        assert np.abs(stored[0].astype(int) - quantise(softmax(logits)).astype(int)).max() <= 1
    assert all(stored is None for _, stored in gpu.classify(iter(batches), probabilities=False))


def test_last_bits_do_not_depend_on_what_else_is_on_the_gpu() -> None:
    """In float32, cuDNN would use hundreds of times a tile's memory if that much is free."""
    spec = ModelSpec.unet(width=64, depth=1)
    tile = spec.tile_for((1, 1100, 1100))
    source = np.random.default_rng(0).normal(size=(1, *tile)).astype(np.float32)
    alone = predictor(spec, "cuda").predict(source).tobytes()
    assert torch.cuda.max_memory_allocated() <= MAX_GPU_MEMORY_FRACTION * torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.empty_cache()
    with occupied(0.6):
        assert predictor(spec, "cuda").predict(source).tobytes() == alone


@contextmanager
def occupied(part: float) -> Iterator[None]:
    """Let another process allocate this fraction of the GPU's memory."""
    with subprocess.Popen([sys.executable, "-c", OCCUPY, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"taken\n"
        yield
        other.communicate()


def test_what_is_not_finite_has_no_label() -> None:
    gpu, tile = predictor(PLANAR, "cuda"), PLANAR.tile_for((1, 20, 20))
    voxels, ones = np.zeros((1, *tile), np.float32), np.ones((1, tile[0]), np.float32)
    voxels[0, 0, tile[1] // 2, tile[2] // 2] = np.nan
    assert isinstance(gpu, Classifier)
    ((labels, _),) = gpu.classify(iter([Batch(voxels, ones, ones)]), probabilities=False)
    assert 0 < (labels == NOT_COMPUTED).sum() < labels.size


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_runs_in_a_low_precision(precision: Precision, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """This process and each GPU give the same bytes, and tiling has no effect."""
    volume, model = inputs
    for name, where in (("one", {"workers": 0}), ("all", {"cluster": "cuda"})):
        asked: dict[str, Any] = {"model": model, "device": "cuda", "precision": precision, "probabilities": True, **where}
        assert segment(volume, tmp_path / name, **asked).exit_code == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "all")
    verdict = verify(tmp_path / "all", device="cuda")
    assert verdict.holds, str(verdict)
    assert verdict.same_numerics


def test_numerics_name_the_gpu() -> None:
    numerics = predictor(PLANAR, "cuda").numerics(PLANAR.tile_for((1, 8, 8)))
    gpu = process_gpu("cuda")
    assert gpu is not None
    assert numerics.device == gpu.name == torch.cuda.get_device_name()
    assert gpu.uuid.startswith(("GPU-", "MIG-"))
    assert 0 < gpu.memory <= torch.cuda.get_device_properties("cuda").total_memory


def test_too_little_memory() -> None:
    """It raises a specific error, and the next tile is correct."""
    gpu, tile = predictor(PLANAR, "cuda"), PLANAR.tile_for((1, 8, 8))
    before = canary_of(gpu, tile)
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 18, 1, 1 << 14, 1 << 14), (0, 0, 0, 0))
    with pytest.raises(MemoryShortageError):
        gpu.predict(endless)
    assert canary_of(gpu, tile) == before


def test_a_broken_device_needs_a_new_process() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", BROKEN], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["device"], done.stderr


def test_runs(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    """One GPU, all GPUs, and two workers per GPU write the same bytes: those of one pass on the CPU, except for ties."""
    volume, model = inputs
    for name, where in (
        ("one", {"workers": 0}),
        ("all", {"cluster": "cuda"}),
        ("two", {"cluster": "cuda", "workers_per_gpu": 2}),
    ):
        assert segment(volume, tmp_path / name, model=model, device="cuda", **where).exit_code == 0
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "all") == bytes_of(tmp_path / "two")

    truth = one_pass(np.asarray(zarr.open_array(volume, mode="r")[:]), model)
    labels = np.asarray(zarr.open_array(tmp_path / "all" / "labels" / "classes" / "0", mode="r")[:])
    best = np.sort(truth, axis=0)
    differs = labels != truth.argmax(axis=0)
    assert not (differs & (best[-1] - best[-2] > TIE)).any()
    assert verify(tmp_path / "all", device="cuda").holds


def test_the_driver_opens_no_context(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    command: list[str | Path] = [sys.executable, tmp_path / "driver.py", *inputs, tmp_path / "out.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr
