"""Fixtures of the GPU tests: a GPU, or a simulated driver."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from runs import PLANAR, save_random_model, save_volume, shape_of_many_blocks, texture

FAKE = Path(__file__).with_name("fake_nvml.c")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` if torch has no GPU."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} finds no GPU here"))


@pytest.fixture(scope="session")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process whose simulated driver has two GPUs. They cannot compute."""
    if shutil.which("gcc") is None:
        pytest.skip("the fake driver is compiled with gcc, which is not here")
    folder = tmp_path_factory.mktemp("driver")
    library = str(folder / "libnvidia-ml.so.1")
    command = ["gcc", "-Wall", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", library, str(FAKE)]
    subprocess.run(command, check=True)
    paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH")]))
    return {**without_gpus(), "LD_LIBRARY_PATH": paths, "DASK_CUDA_TEST_SINGLE_GPU": "1"}


def without_gpus() -> dict[str, str]:
    """Return this environment without a selection of GPUs."""
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a volume of many blocks, and a model."""
    folder = tmp_path_factory.mktemp("inputs")
    volume = save_volume(folder / "volume.zarr", texture(shape_of_many_blocks(PLANAR)))
    return volume, save_random_model(folder / "model.safetensors", PLANAR)
