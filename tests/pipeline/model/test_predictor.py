"""Test that the predictor gives the network's result, in the network's own type."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from networks import random_network, run

from emseg_core.canary import canary_of
from emseg_core.errors import BlockError, DeviceError, MemoryShortageError
from emseg_core.model.predictor import TorchPredictor
from emseg_core.specs.model import ModelSpec

PLANAR = ModelSpec.unet(width=3, depth=2)
SOLID = ModelSpec.unet(width=3, depth=1, kernel=(3, 3, 3), pooling=(2, 2, 2))


def tiles(spec: ModelSpec, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    z, y, x = spec.tile_for((2, 5, 3))
    return np.random.default_rng(0).normal(size=(count, z, y, x)).astype(np.float32)


@pytest.mark.parametrize("spec", [PLANAR, SOLID])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_logits_are_those_of_the_network(spec: ModelSpec, dtype: torch.dtype, tolerance: float) -> None:
    expected = [run(random_network(spec, dtype=torch.float64), tile) for tile in tiles(spec, 3)]
    logits = TorchPredictor(random_network(spec, dtype=dtype), threads=1).predict(tiles(spec, 3))
    assert logits.shape == (3, 2, *spec.output_shape(spec.tile_for((2, 5, 3))))
    assert logits.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    np.testing.assert_allclose(logits, np.stack(expected), rtol=tolerance, atol=tolerance)


def test_the_tiles_are_left_alone() -> None:
    before = tiles(PLANAR, 2)
    given = before.copy()
    TorchPredictor(random_network(PLANAR, dtype=torch.float32), threads=1).predict(given)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("spec", [PLANAR, SOLID])
def test_the_same_bytes_each_time(spec: ModelSpec) -> None:
    predictor = TorchPredictor(random_network(spec, dtype=torch.float32), threads=1)
    again = TorchPredictor(random_network(spec, dtype=torch.float32), threads=1)
    first = predictor.predict(tiles(spec, 1)).tobytes()
    assert predictor.predict(tiles(spec, 1)).tobytes() == first
    assert again.predict(tiles(spec, 1)).tobytes() == first


def test_a_network_in_training_is_put_to_evaluation() -> None:
    network = random_network(PLANAR).train()
    predictor = TorchPredictor(network, threads=1)
    np.testing.assert_array_equal(predictor.predict(tiles(PLANAR, 1)), predictor.predict(tiles(PLANAR, 1)))
    assert not network.training


def test_it_computes_with_its_threads_whoever_calls() -> None:
    """Torch sets the number of threads per calling thread, and that number changes the last bits."""
    predictor = TorchPredictor(random_network(PLANAR), threads=2)
    seen: list[int] = []

    def call() -> None:
        torch.set_num_threads(1)
        predictor.predict(tiles(PLANAR, 1))
        seen.append(torch.get_num_threads())

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert seen == [2]
    torch.set_num_threads(1)


def test_numerics_say_what_decides_the_last_bits() -> None:
    predictor, tile = TorchPredictor(random_network(PLANAR, dtype=torch.float32), threads=3), PLANAR.tile_for((1, 8, 8))
    numerics = predictor.numerics(tile)
    assert numerics.backend == f"torch {torch.__version__}"
    assert numerics.device == torch.backends.cpu.get_cpu_capability()
    assert numerics.precision == "float32"
    assert numerics.threads == 3
    assert numerics.canary == canary_of(predictor, tile)


@pytest.mark.parametrize(
    ("said", "seen", "told"),
    [
        (MemoryError(), MemoryShortageError, "out of memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"),
            MemoryShortageError,
            "CUDA out of memory. Tried 2 GiB",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryShortageError, "can't allocate memory"),
        (RuntimeError("CUDA error: an illegal memory access\nmore"), BlockError, r"\(CUDA error: an illegal memory access\)"),
        (RuntimeError("CUDA error: out of memory\nmore"), MemoryShortageError, "out of memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), MemoryShortageError, "ALLOC_FAILED"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), BlockError, "the device failed"),
        (RuntimeError("shapes differ"), RuntimeError, "shapes differ"),
    ],
)
def test_what_torch_says_in_words_becomes_an_error_of_its_kind(
    said: Exception, seen: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_network(PLANAR)
    predictor = TorchPredictor(network, threads=1)

    def fail(*_: object) -> None:
        raise said

    monkeypatch.setattr(network, "forward", fail)
    with pytest.raises(seen, match=told) as caught:
        predictor.predict(tiles(PLANAR, 1))
    assert type(caught.value) is seen
    if isinstance(caught.value, BlockError):
        assert caught.value.fault == "device"


def test_too_little_memory_for_real() -> None:
    """Torch itself refuses a batch larger than any address space."""
    predictor = TorchPredictor(random_network(PLANAR, dtype=torch.float32), threads=1)
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 18, 1, 1 << 14, 1 << 14), (0, 0, 0, 0))
    with pytest.raises(MemoryShortageError):
        predictor.predict(endless)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_never_the_cpu_instead_of_a_gpu() -> None:
    with pytest.raises(DeviceError, match=r"on cuda, but torch \S+ (is built without CUDA|finds no usable GPU).*--device cpu"):
        TorchPredictor(random_network(PLANAR), threads=1, device="cuda")
