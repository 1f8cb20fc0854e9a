"""Test that a run gives the result of one pass over the whole volume, with the same bytes wherever its blocks were computed."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from numpy.typing import NDArray
from runs import (
    CUBIC,
    PLANAR,
    assert_same_labels,
    assert_same_probabilities,
    bytes_of,
    one_pass,
    save_random_model,
    save_volume,
    shape_of_many_blocks,
    shards,
    texture,
)

import emseg
import emseg.flows.segment as flow
from emseg.clusters.local import local_cluster
from emseg.flows.records.run_log import lines_of
from emseg.flows.running.draft import settle
from emseg.flows.segment import segment
from emseg.runs.events import BlockEnded, Event, Noticed, RunEnded, RunStarted, WorkerJoined
from emseg_core.box import Box
from emseg_core.errors import InputError, OutputError, PlanError
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.normalise import Scope
from emseg_core.specs.model import ModelSpec
from emseg_core.store.outputs.lifecycle import open_output

SPECS = {"planar": PLANAR, "cubic": CUBIC}


class Case:
    """A volume, a model, and the output of the reference executor."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.values = texture(shape_of_many_blocks(spec))
        self.volume = save_volume(folder / "volume.zarr", self.values)
        self.model = save_random_model(folder / "model.safetensors", spec)
        self.reference = folder / "reference.zarr"
        self.report = segment(self.volume, self.reference, model=self.model, probabilities=True, workers=0)

    def run(self, output: Path, **more: Any) -> Any:
        """Run with the settings of the reference, except for the given ones."""
        return segment(self.volume, output, **{"model": self.model, "probabilities": True, "workers": 0, **more})


@pytest.fixture(scope="module", params=SPECS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), SPECS[request.param])


@pytest.fixture(scope="module")
def planar(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("planar"), PLANAR)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Callable[[int], Client]]:
    """Return clusters by their number of workers. Each is started once."""
    with ExitStack() as running:
        yield cache(lambda workers: running.enter_context(local_cluster(workers, BLOCKS_IN_FLIGHT)))


def labels_of(output: Path) -> NDArray[np.uint8]:
    stored = open_output(output)
    return stored.read_labels(stored.region)


def copy_of(case: Case, folder: Path) -> Path:
    return Path(shutil.copytree(case.reference, folder / "output.zarr"))


# -- the truth --------------------------------------------------------------------------------------------------------


def test_reference_is_one_pass_over_the_whole_volume(case: Case) -> None:
    plan = emseg.plan(case.volume, model=case.model).plan
    assert len(plan) >= 24
    assert min(plan.grid) >= 2
    assert (case.report.done, case.report.exit_code) == (len(plan), 0)
    truth, stored = one_pass(case.values, case.model), open_output(case.reference)
    labels = stored.read_labels(stored.region)
    assert_same_labels(labels, truth)
    assert len(np.unique(labels)) > 1
    assert_same_probabilities(stored.read_probabilities(stored.region), truth)


def test_probabilities_do_not_change_the_labels(planar: Case, tmp_path: Path) -> None:
    planar.run(tmp_path / "labels.zarr", probabilities=False)
    assert [path.read_bytes() for path in shards(tmp_path / "labels.zarr")] == [
        path.read_bytes() for path in shards(planar.reference)
    ]
    assert not (tmp_path / "labels.zarr" / "probabilities").exists()


def test_test_time_augmentation_is_one_pass_too_and_the_same_bytes_on_a_cluster(
    case: Case, cluster: Callable[[int], Client], tmp_path: Path
) -> None:
    case.run(tmp_path / "here.zarr", tta=True)
    truth, stored = one_pass(case.values, case.model, tta=True), open_output(tmp_path / "here.zarr")
    assert_same_labels(stored.read_labels(stored.region), truth)
    assert_same_probabilities(stored.read_probabilities(stored.region), truth)
    assert (labels_of(case.reference) != labels_of(tmp_path / "here.zarr")).any()
    case.run(tmp_path / "there.zarr", tta=True, client=cluster(3), workers=None)
    assert bytes_of(tmp_path / "here.zarr") == bytes_of(tmp_path / "there.zarr")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_types(spec: ModelSpec, dtype: str, tmp_path: Path) -> None:
    values = texture((6, 19, 23)).astype(dtype) * (201 if dtype == "uint16" else np.float32(1e-3))
    check(tmp_path, values, spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("shape", [(1, 33, 35), (2, 3, 41), (3, 40, 2), (3, 1, 37), (40, 5, 5), (9, 31, 29)])
def test_odd_and_thin_volumes(spec: ModelSpec, shape: tuple[int, int, int], tmp_path: Path) -> None:
    check(tmp_path, texture(shape), spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_image(spec: ModelSpec, tmp_path: Path) -> None:
    check(tmp_path, texture((1, 37, 45))[0], spec)
    assert zarr.open_array(tmp_path / "out.zarr/labels/classes/0").shape == (37, 45)
    assert zarr.open_array(tmp_path / "out.zarr/probabilities/0").shape == (len(spec.classes), 37, 45)


def test_volume_of_one_voxel(tmp_path: Path) -> None:
    volume = save_volume(tmp_path / "volume.zarr", np.full((1, 1, 1), 7, np.uint8))
    report = segment(volume, model=save_random_model(tmp_path / "m.safetensors", CUBIC), workers=0)
    assert (report.blocks, report.done) == (1, 1)


@pytest.mark.parametrize("scope", ["volume", "slice"])
def test_normalisation_of_a_stack_whose_contrast_jumps(scope: Scope, tmp_path: Path) -> None:
    values = texture((8, 40, 44)).astype(np.uint16)
    values = values * np.array([1, 40, 3, 200, 5, 2, 90, 1], np.uint16)[:, None, None]
    check(tmp_path, values, PLANAR, scope)


def check(folder: Path, values: NDArray[Any], spec: ModelSpec, scope: Scope = "volume") -> None:
    """Run on these voxels, and check that labels and probabilities are those of one pass."""
    volume = save_volume(folder / "volume.zarr", values)
    model = save_random_model(folder / "model.safetensors", spec)
    report = segment(volume, folder / "out.zarr", model=model, normalise=scope, probabilities=True, workers=0)
    assert report.exit_code == 0
    stored = open_output(folder / "out.zarr")
    truth = one_pass(values.reshape(stored.region.shape), model, per_slice=scope == "slice")
    assert_same_labels(stored.read_labels(stored.region), truth)
    assert_same_probabilities(stored.read_probabilities(stored.region), truth)


# -- placement changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    case: Case, cluster: Callable[[int], Client], workers: int, tmp_path: Path
) -> None:
    report = case.run(tmp_path / "output.zarr", client=cluster(workers), workers=None)
    assert (report.done, report.failed) == (case.report.done, 0)
    assert bytes_of(tmp_path / "output.zarr") == bytes_of(case.reference)


def test_a_cluster_by_its_address_gives_the_same_bytes(planar: Case, cluster: Callable[[int], Client], tmp_path: Path) -> None:
    security, scheduler = cluster(3).security, cluster(3).scheduler
    assert scheduler is not None
    tls = tuple(map(Path, (security.tls_ca_file, security.tls_client_cert, security.tls_client_key)))
    planar.run(tmp_path / "output.zarr", scheduler=scheduler.address, tls=tls, workers=None)
    assert bytes_of(tmp_path / "output.zarr") == bytes_of(planar.reference)
    assert cluster(3).submit(int, 7).result() == 7  # the cluster belongs to another user, and continues


def test_workers_of_its_own(planar: Case, tmp_path: Path) -> None:
    events: list[Event] = []
    planar.run(tmp_path / "output.zarr", workers=2, on_event=events.append)
    assert bytes_of(tmp_path / "output.zarr") == bytes_of(planar.reference)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.workers == 2
    assert started.dashboard is not None
    outcomes = [event.outcome for event in events if isinstance(event, BlockEnded)]
    assert sorted(outcome.block for outcome in outcomes) == list(range(planar.report.blocks))
    joined = [event.worker for event in events if isinstance(event, WorkerJoined)]
    assert 1 <= len(set(joined)) <= 2  # the first may have done everything before the second is ready
    assert isinstance(events[-1], RunEnded)


def test_threads_of_a_predictor_are_the_same_on_a_cluster(
    planar: Case, cluster: Callable[[int], Client], tmp_path: Path
) -> None:
    planar.run(tmp_path / "here.zarr", threads=2)
    planar.run(tmp_path / "there.zarr", threads=2, client=cluster(3), workers=None)
    assert bytes_of(tmp_path / "here.zarr") == bytes_of(tmp_path / "there.zarr")
    assert open_output(tmp_path / "here.zarr").attributes["recipe"]["numerics"]["threads"] == 2


# -- regions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(0, 0, 0), (1, 3, 5), (2, 8, 6), (4, 11, 13)])
def test_region_is_the_crop(case: Case, start: tuple[int, int, int], tmp_path: Path) -> None:
    region = Box(start, (6, 27, 29))
    case.run(tmp_path / "region.zarr", roi=region)
    crop, whole = open_output(tmp_path / "region.zarr"), open_output(case.reference)
    assert crop.region == region
    np.testing.assert_array_equal(crop.read_labels(region), whole.read_labels(region))
    np.testing.assert_array_equal(crop.read_probabilities(region), whole.read_probabilities(region))


def test_region_lies_at_its_place_in_space(planar: Case, tmp_path: Path) -> None:
    image = save_volume(tmp_path / "sized.zarr", planar.values, voxel_size=[50, 4, 8], offset=[100, 10, 0], units=["nm"] * 3)
    segment(image, tmp_path / "region.zarr", model=planar.model, roi="1:,3:20,5:", workers=0)
    for group in ("region.zarr", "region.zarr/labels/classes"):
        ome: Any = zarr.open_group(tmp_path / group, mode="r").attrs["ome"]
        scale, translation = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert scale["scale"] == [50, 4, 8]
        assert translation["translation"] == [150, 22, 40]


def test_region_of_an_image(tmp_path: Path) -> None:
    volume = save_volume(tmp_path / "image.zarr", texture((1, 37, 45))[0])
    model = save_random_model(tmp_path / "model.safetensors", PLANAR)
    segment(volume, tmp_path / "whole.zarr", model=model, workers=0)
    segment(volume, tmp_path / "region.zarr", model=model, roi="5:30,:40", workers=0)
    np.testing.assert_array_equal(labels_of(tmp_path / "region.zarr"), labels_of(tmp_path / "whole.zarr")[:, 5:30, :40])


# -- going on ---------------------------------------------------------------------------------------------------------


def test_twice_is_once(planar: Case, tmp_path: Path) -> None:
    output = copy_of(planar, tmp_path)
    report = planar.run(output)
    assert (report.done, report.skipped, report.failed, report.left, report.exit_code) == (0, report.blocks, 0, 0, 0)
    assert bytes_of(output) == bytes_of(planar.reference)


def test_only_what_is_missing_is_computed(case: Case, tmp_path: Path) -> None:
    output = copy_of(case, tmp_path)
    labels, probabilities = shards(output), shards(output, "probabilities/0")
    for file in (labels[0], labels[7], probabilities[7], probabilities[9], probabilities[-1]):
        file.unlink()
    events: list[Event] = []
    report = case.run(output, on_event=events.append)
    assert (report.done, report.skipped) == (4, report.blocks - 4)
    assert [event.already_done for event in events if isinstance(event, RunStarted)] == [report.blocks - 4]
    assert report.voxels == sum(event.outcome.voxels for event in events if isinstance(event, BlockEnded))
    assert bytes_of(output) == bytes_of(case.reference)


def test_what_is_there_is_not_touched(planar: Case, tmp_path: Path) -> None:
    output = copy_of(planar, tmp_path)
    first, *others = shards(output)
    first.unlink()
    before = {path: path.stat().st_mtime_ns for path in others}
    planar.run(output)
    assert {path: path.stat().st_mtime_ns for path in others} == before


def ended(output: Path, run: int) -> dict[str, Any]:
    """Return the report in the record of a run."""
    (report,) = [line["report"] for line in lines_of(open_output(output), run) if line["event"] == "ended"]
    return dict(report)


def test_a_stopped_run_goes_on(planar: Case, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    seen = itertools.count(1)

    def stop(event: Event) -> None:
        if isinstance(event, BlockEnded) and next(seen) == 11:
            raise Stop

    output = tmp_path / "output.zarr"
    with pytest.raises(Stop):
        planar.run(output, on_event=stop)
    assert ended(output, 1)["done"] == 11
    assert ended(output, 1)["left"] == planar.report.blocks - 11
    report = planar.run(output)
    assert report.skipped == 11
    assert bytes_of(output) == bytes_of(planar.reference)
    assert ended(output, 2)["skipped"] == 11


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "other"}, "model_digest was "),
        ({"probabilities": False}, "probabilities was true, now false"),
        ({"tta": True}, "tta was false, now true"),
        ({"roi": "0:2,:,:"}, "plan.region was "),
        ({"normalise": "slice"}, 'normalisation.scope was "volume", now "slice"'),
        ({"tile": (1, 32, 32)}, "plan.tile was "),
        ({"threads": 2}, "numerics.threads was 1, now 2"),
        ({"volume": "other"}, "volume_digest was "),
    ],
)
def test_going_on_with_other_settings_is_refused(planar: Case, changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    output = copy_of(planar, tmp_path)
    shards(output)[3].unlink()
    before = bytes_of(output)
    if "model" in changed:
        changed = {"model": save_random_model(tmp_path / "other.safetensors", PLANAR, seed=5)}
    volume = planar.volume
    if "volume" in changed:
        changed, volume = {}, save_volume(tmp_path / "other.zarr", planar.values[:, ::-1])
    settings: dict[str, Any] = {"model": planar.model, "probabilities": True, "workers": 0, **changed}
    with pytest.raises(OutputError) as error:
        segment(volume, output, **settings)
    assert named in str(error.value)
    assert "--overwrite" in str(error.value)
    assert bytes_of(output) == before
    report = segment(volume, output, **settings, overwrite=True)
    assert (report.done, report.skipped) == (report.blocks, 0)


def test_a_moved_volume_goes_on(planar: Case, tmp_path: Path) -> None:
    output = copy_of(planar, tmp_path)
    shards(output)[0].unlink()
    moved = shutil.copytree(planar.volume, tmp_path / "moved.zarr")
    assert segment(moved, output, model=planar.model, probabilities=True, workers=0).done == 1


def test_an_output_that_was_begun_with_a_given_tile_goes_on_without(planar: Case, tmp_path: Path) -> None:
    planar.run(tmp_path / "output.zarr", tile=(1, 32, 32))
    shards(tmp_path / "output.zarr")[0].unlink()
    assert planar.run(tmp_path / "output.zarr").done == 1


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "threads"), [(-1, 1), (0, 0), (1, -3)])
def test_numbers_of_workers_and_threads(planar: Case, workers: int, threads: int, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="needs at least"):
        planar.run(tmp_path / "output.zarr", workers=workers, threads=threads)
    assert not (tmp_path / "output.zarr").exists()


def test_workers_of_its_own_and_a_running_cluster_exclude_one_another(planar: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one of them"):
        planar.run(tmp_path / "output.zarr", workers=2, scheduler="tcp://127.0.0.1:8786")
    assert not (tmp_path / "output.zarr").exists()


def test_a_scheduler_address_that_is_none(planar: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check the address"):
        planar.run(tmp_path / "output.zarr", workers=None, scheduler="nonsense://here")
    assert not (tmp_path / "output.zarr").exists()


def test_an_output_that_another_run_creates_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is created while workers start, after the path was checked. That run may use another model, and may have ended."""
    volume = save_volume(tmp_path / "v.zarr", texture((5, 40, 40)))
    first, second = (save_random_model(tmp_path / f"{seed}.safetensors", PLANAR, seed) for seed in (1, 2))

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(flow, "settle", settle)
        assert segment(volume, tmp_path / "o.zarr", model=first, workers=0).exit_code == 0
        return settle(*arguments)

    monkeypatch.setattr(flow, "settle", overtaken)
    with pytest.raises(OutputError, match=r"o.zarr was created by another run meanwhile: run again to resume it, or choose"):
        segment(volume, tmp_path / "o.zarr", model=second, workers=0)
    assert segment(volume, tmp_path / "alone.zarr", model=first, workers=0).exit_code == 0
    assert bytes_of(tmp_path / "o.zarr") == bytes_of(tmp_path / "alone.zarr")


# -- notices ----------------------------------------------------------------------------------------------------------


def notices(folder: Path, values: NDArray[Any], spec: ModelSpec, card: dict[str, str], **attributes: Any) -> list[str]:
    volume = save_volume(folder / "volume.zarr", values, **attributes)
    model = save_random_model(folder / "model.safetensors", spec, card=card)
    events: list[Event] = []
    segment(volume, model=model, workers=0, on_event=events.append)
    return [event.message for event in events if isinstance(event, Noticed)]


def test_a_single_slice_for_a_model_in_three_dimensions(tmp_path: Path) -> None:
    assert "single slice" in notices(tmp_path, texture((1, 20, 20)), CUBIC, {})[0]


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"voxel_size": [8, 8, 8], "units": ["nm"] * 3}, None),
        ({"voxel_size": [50, 4, 4], "units": ["nm"] * 3}, "50 4 4 nanometer"),
        ({}, "does not state its voxel size"),
    ],
)
def test_voxel_size_of_the_training(attributes: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    messages = notices(tmp_path, texture((3, 20, 20)), PLANAR, {"voxel_size": "8 8 8 nanometer"}, **attributes)
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]


def test_voxel_size_of_an_image(tmp_path: Path) -> None:
    size = {"voxel_size": [8, 8], "units": ["nm"] * 2}
    assert notices(tmp_path, texture((1, 20, 20))[0], PLANAR, {"voxel_size": "8 8 8 nanometer"}, **size) == []
