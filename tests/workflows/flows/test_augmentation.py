"""Test test-time augmentation of heads that are not classes: channels move, and a network that commutes stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import Edges
from numpy.typing import NDArray
from runs import bytes_of, save_volume, texture

from emseg import plan, segment, verify
from emseg.flows.records.run_log import recipe_of
from emseg_core.errors import PlanError
from emseg_core.store.outputs.lifecycle import open_output

SHAPE = (7, 60, 52)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a volume."""
    folder = tmp_path_factory.mktemp("augmentation")
    save_volume(folder / "volume.zarr", texture(SHAPE))
    return folder


def run(folder: Path, output: Path, name: str, **options: Any) -> dict[str, NDArray[Any]]:
    """Run, and return the images of the output by their names."""
    report = segment(folder / "volume.zarr", output, predictor=f"detectors:{name}", **{"workers": 0, **options})
    assert (report.exit_code, report.left) == (0, 0)
    stored = open_output(output)
    return {image.name: stored.read(image.name, stored.region) for image in stored.images}


@pytest.mark.parametrize("name", ["Edges", "EdgesBehind"])
def test_a_network_that_commutes_gives_the_same(name: str, folder: Path, tmp_path: Path) -> None:
    plain, turned = (run(folder, tmp_path / f"{tta}.zarr", name, tta=tta, probabilities=True) for tta in (False, True))
    assert set(plain) == {"affinities", "organelles", "mito"}
    for image, values in plain.items():
        assert len(np.unique(values)) > 1
        np.testing.assert_array_equal(turned[image], values)
    assert verify(tmp_path / "True.zarr", boxes=3, predictor=f"detectors:{name}").holds


def test_channels_that_turn_into_one_another_are_averaged(folder: Path, tmp_path: Path) -> None:
    """One of the two channels of neighbours in the plane is half as large: the mean is three quarters, for both."""
    plain = run(folder, tmp_path / "plain.zarr", "Edges")["affinities"].astype(float)
    mean = run(folder, tmp_path / "mean.zarr", "Uneven", tta=True)["affinities"].astype(float)
    for channel in range(len(Edges.offsets)):
        factor = 0.75 if channel in (1, 2) else 1
        assert np.abs(mean[channel] - factor * plain[channel]).max() <= 1


def test_two_workers_give_the_same_bytes_and_a_run_goes_on(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "one.zarr", "Uneven", tta=True)
    run(folder, tmp_path / "two.zarr", "Uneven", tta=True, workers=2)
    assert bytes_of(tmp_path / "one.zarr") == bytes_of(tmp_path / "two.zarr")
    recipe = recipe_of(open_output(tmp_path / "one.zarr"))
    assert recipe.from_json(recipe.to_json()) == recipe
    context = plan(folder / "volume.zarr", predictor="detectors:Uneven", tta=True).plan.model.context
    assert recipe.plan.model.context == context == (1, 6, 6)
    for shard in (tmp_path / "two.zarr" / "affinities" / "0" / "c").rglob("*"):
        if shard.is_file():
            shard.unlink()
            break
    run(folder, tmp_path / "two.zarr", "Uneven", tta=True)
    assert bytes_of(tmp_path / "one.zarr") == bytes_of(tmp_path / "two.zarr")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("OneSided", r"the offset -1 1 0 \(z y x\) of the head 'affinities' into -1 -1 0, which is none of its offsets"),
        ("Many", "the head 'distances' of values, which may be vectors"),
    ],
)
def test_what_has_no_mean_is_refused(name: str, said: str, folder: Path, tmp_path: Path) -> None:
    for command in (plan, segment):
        with pytest.raises(PlanError, match=said):
            command(folder / "volume.zarr", predictor=f"detectors:{name}", tta=True)


def test_other_heads_can_be_stored(folder: Path, tmp_path: Path) -> None:
    """Heads that have no mean do not matter if they are not stored."""
    options: dict[str, Any] = {"heads": ("organelles", "classes"), "probabilities": True}
    plain, turned = (run(folder, tmp_path / f"{tta}.zarr", "Many", tta=tta, **options) for tta in (False, True))
    for image, values in plain.items():
        assert np.abs(values.astype(int) - turned[image]).max() <= 1
        assert (values != turned[image]).mean() < 0.01
    assert verify(tmp_path / "True.zarr", boxes=3, predictor="detectors:Many").holds
    assert recipe_of(open_output(tmp_path / "True.zarr")).plan.model.context == (1, 2, 2)
