"""Test runs on GPUs without a GPU: the driver is simulated, dask-cuda is real, and predictors compute on the CPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import bytes_of, run_emseg, snapshot

from emseg import clusters
from emseg.executors.serial import SerialExecutor
from emseg.flows.segment import segment
from emseg.placement import Placement
from emseg_core.errors import DeviceError, PlanError
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT
from emseg_core.installation import install_hint
from emseg_core.machine import usable_memory
from emseg_core.model.device import process_gpu

UUID = "GPU-00000000-0000-0000-0000-00000000000"


def joined(output: Path) -> list[str]:
    """Return the GPU UUID of each worker that has joined, from the run record."""
    lines = [json.loads(line) for file in output.glob("emseg/run-*/*.jsonl") for line in file.read_text().splitlines()]
    return sorted(line["device"] for line in lines if line["event"] == "joined")


@pytest.fixture(scope="module")
def serial(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the bytes of the output of a run in one process, without Dask."""
    volume, model = inputs
    output = tmp_path_factory.mktemp("serial") / "out.zarr"
    assert segment(volume, output, model=model, workers=0).exit_code == 0
    return bytes_of(output)


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ("", [f"{UUID}0", f"{UUID}1"]),
        ("--gpus 1", [f"{UUID}1"]),
        ("--gpus 1 --workers-per-gpu 2", [f"{UUID}1"] * 2),
    ],
)
def test_a_worker_for_each_gpu(
    options: str,
    devices: list[str],
    inputs: tuple[Path, Path],
    serial: dict[str, str],
    fake_driver: dict[str, str],
    tmp_path: Path,
) -> None:
    """The bytes are those of a run without GPUs."""
    volume, model = inputs
    output = tmp_path / "out.zarr"
    command = ("run", volume, "-o", output, "--model", model, "--cluster", "cuda", "--device", "cpu", *options.split())
    done = run_emseg(*command, env=fake_driver)
    assert done.returncode == 0, done.stderr
    assert f"on {len(devices)} worker process{'es' if len(devices) > 1 else ''}\n" in done.stderr
    assert set(joined(output)) <= set(devices)  # a worker may arrive when all blocks are done
    assert bytes_of(output) == serial


BUILT = "finds no usable GPU" if torch.backends.cuda.is_built() else "is built without CUDA"  # type: ignore[no-untyped-call]
NO_GPU = {
    "device cuda": ("--cluster cuda", {}, rf"on cuda, but torch \S+ {BUILT} here: .*--device cpu"),
    "one GPU": (
        "--cluster cuda --device cpu",
        {"FAKE_NVML_ONE": "1"},
        f"tls://.* share the GPU {UUID}0, but at most 1",
    ),
    "three of two": ("--cluster cuda --device cpu --gpus 0,2", {}, "asks for 2, but only 0, 1 can be used: choose"),
    "hidden": (
        "--cluster cuda --device cpu --gpus 0",
        {"CUDA_VISIBLE_DEVICES": "1"},
        "for 0, but only 1 can be used",
    ),
    "all hidden": ("--cluster cuda --device cpu", {"CUDA_VISIBLE_DEVICES": ""}, "hides all 2 of the driver: leave one visible"),
    "twice": ("--cluster cuda --device cpu", {"CUDA_VISIBLE_DEVICES": "1,1"}, "is 1,1, but must name each GPU once"),
}


@pytest.mark.parametrize("case", NO_GPU)
def test_refused_in_one_line_and_nothing_written(
    case: str, inputs: tuple[Path, Path], fake_driver: dict[str, str], tmp_path: Path
) -> None:
    volume, model = inputs
    options, environment, told = NO_GPU[case]
    done = run_emseg(
        "run", volume, "-o", tmp_path / "out.zarr", "--model", model, *options.split(), env=fake_driver | environment
    )
    assert_refused(done, told, tmp_path)


def test_no_driver(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    volume, model = inputs
    command = ("run", volume, "-o", tmp_path / "out.zarr", "--model", model, "--cluster", "cuda", "--device", "cpu")
    try:
        import pynvml

        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert_refused(run_emseg(*command), r"no NVIDIA driver answers on this machine \(.+\): install the driver", tmp_path)
    else:
        pytest.skip("there is a driver here")


def assert_refused(done: subprocess.CompletedProcess[str], told: str, folder: Path) -> None:
    """Check that the run is refused in one line and that nothing is written."""
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "orker" not in line or line.startswith("error")]
    assert re.search(f"^error: .*{told}", line)
    assert not snapshot(folder)


def test_dask_cuda_is_not_installed(inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, model = inputs
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    monkeypatch.delitem(sys.modules, "emseg.clusters.cuda", raising=False)
    monkeypatch.delattr(clusters, "cuda", raising=False)
    with pytest.raises(DeviceError, match=r"needs dask-cuda \(.*\): " + re.escape(install_hint("cuda"))):
        segment(volume, tmp_path / "out.zarr", model=model, cluster="cuda")
    assert not snapshot(tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cluster": "cuda", "workers": 2}, "starts a worker for each GPU, not 2 workers: leave out --workers"),
        ({"cluster": "cuda", "workers": 0}, "not 0 workers"),
        ({"cluster": "cuda", "host": "10.0.0.1"}, "not on 10.0.0.1: leave out --host"),
        ({"cluster": "cuda", "scheduler": "tcp://there:1"}, "or uses those of tcp://there:1, not both"),
        ({"cluster": "cuda", "gpus": (1, 1)}, "different whole numbers"),
        ({"cluster": "cuda", "gpus": ()}, "different whole numbers"),
        ({"cluster": "cuda", "gpus": (-1,)}, "different whole numbers"),
        ({"cluster": "cuda", "workers_per_gpu": 0}, "at least 1 worker, not 0"),
        ({"gpus": (0,)}, "--gpus is for --cluster cuda"),
        ({"gpus": (0,), "scheduler": "tcp://there:1"}, "--gpus is for --cluster cuda"),
        ({"workers_per_gpu": 2}, "--workers-per-gpu is for GPUs"),
    ],
)
def test_what_excludes_one_another(options: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Placement(**options)


def test_what_computes_by_default() -> None:
    assert Placement().computes_on == "cpu"
    assert Placement(scheduler="tcp://there:1", workers_per_gpu=2).computes_on == "cpu"
    assert Placement(cluster="cuda", gpus=(0, 2), workers_per_gpu=2).computes_on == "cuda"


PROBE = """
import json, os, signal, sys, time
from urllib.request import HTTPCookieProcessor, build_opener

import psutil

from emseg import segment
from emseg.clusters.cuda import cuda_cluster
from emseg.runs.events import WorkerJoined, WorkerLeft
from emseg.executors.dask import DaskExecutor
from emseg.runs.stop import Stop


def main(volume, model, output):
    found = {}
    with cuda_cluster(None, 1, 2) as client:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        workers = client.scheduler_info(n_workers=-1)["workers"]
        found["addresses"], found["doors"] = sorted(set(listening)), len(listening)
        found["pages"] = build_opener(HTTPCookieProcessor()).open(client.dashboard_link).status
        found["served"] = [name for about in workers.values() for name in about["services"]]
        found["tls"] = [client.scheduler.address, *workers, *(about["nanny"] for about in workers.values())]
        found["folders"] = [client.cluster.scheduler.local_directory, client.security.tls_worker_key]
        found["folders"] += client.run(lambda dask_worker: dask_worker.local_directory).values()
        found["threads"] = [about["nthreads"] for about in workers.values()]
        found["memory"] = [about["memory_limit"] for about in workers.values()]
        before = DaskExecutor(client, Stop()).gpus("cpu")
        found["gpus"] = sorted((gpu.uuid, gpu.name, gpu.memory) for gpu in before.values())
        found["order"] = sorted(set(client.run(lambda: os.environ["CUDA_DEVICE_ORDER"]).values()))
        pids = client.run(os.getpid)
        for pid in pids.values():
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        found["undisturbed"] = client.run(os.getpid) == pids
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        while len(after := client.run(os.getpid, on_error="ignore")) < 2 or after == pids:
            time.sleep(0.1)
        found["again"] = sorted(gpu.uuid for gpu in DaskExecutor(client, Stop()).gpus("cpu").values())
    events = []
    with cuda_cluster([0], 2, 2) as client:
        # else one has done it all before the other is there
        for slow in ("emseg_core.model.predictor", "emseg_core.store.outputs.lifecycle"):
            client.run(__import__, slow)
        report = segment(volume, output, model=model, client=client, on_event=events.append)
    found["exit"] = report.exit_code
    found["joined"] = [event.device for event in events if isinstance(event, WorkerJoined)]
    found["left"] = [event.cause for event in events if isinstance(event, WorkerLeft)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def probed(inputs: tuple[Path, Path], fake_driver: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run a process that creates clusters, and return what it finds out about them."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.py").write_text(PROBE)
    command: list[str | Path] = [sys.executable, folder / "probe.py", *inputs, folder / "out.zarr"]
    done = subprocess.run(command, env=fake_driver, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_each_worker_has_its_gpu(probed: dict[str, Any]) -> None:
    """It also sees the free memory. CUDA's device numbers are those of the driver."""
    free = 12 * 2**30
    assert probed["gpus"] == [[f"{UUID}0", "Fake GPU 0", free], [f"{UUID}1", "Fake GPU 1", free]]
    assert probed["order"] == ["PCI_BUS_ID"]
    assert probed["threads"] == [BLOCKS_IN_FLIGHT] * 2
    assert probed["memory"] == [usable_memory() // 2] * 2


def test_only_loopback_listens(probed: dict[str, Any]) -> None:
    """The scheduler, its dashboard, and each of two workers' nanny, task and HTTP ports listen. Workers have no dashboard."""
    assert probed["doors"] >= 6
    assert set(probed["addresses"]) <= {"127.0.0.1", "::1"}
    assert (probed["pages"], probed["served"]) == (200, [])


def test_all_speak_tls_and_share_a_private_folder(probed: dict[str, Any]) -> None:
    assert [address.partition("://")[0] for address in probed["tls"]] == ["tls"] * 5
    (folder,) = {re.match(r"/.*/emseg-scratch-[^/]+-[0-9a-f]{16}/", path)[0] for path in probed["folders"]}  # type: ignore[index]
    assert not Path(folder).exists()


def test_signals_do_not_reach_workers(probed: dict[str, Any]) -> None:
    assert probed["undisturbed"]


def test_a_worker_that_dies_comes_back_on_its_gpu(probed: dict[str, Any]) -> None:
    assert probed["again"] == [f"{UUID}0", f"{UUID}1"]


def test_a_second_worker_on_a_gpu_of_a_running_cluster_gets_no_blocks(probed: dict[str, Any]) -> None:
    assert probed["exit"] == 0
    assert probed["joined"] == [f"{UUID}0"]
    (cause,) = probed["left"]
    assert f"share the GPU {UUID}0, but at most 1 may" in cause


def test_a_cpu_worker_has_no_gpu() -> None:
    """This holds whatever its machine has."""
    assert process_gpu("cpu") is None
    assert SerialExecutor().gpus("cpu") == {}


@pytest.mark.parametrize(("cores", "gpus", "fed"), [(2, None, 1), (16, (0,), 4), (16, None, 2), (500, None, 4)])
def test_as_many_workers_on_each_gpu_as_the_cores_can_feed(
    cores: int, gpus: tuple[int, ...] | None, fed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("emseg.clusters.cuda")
    monkeypatch.setattr(cuda, "usable_cores", lambda: cores)
    monkeypatch.setattr(cuda, "_choose", lambda asked: [0, 1] if asked is None else list(asked))
    assert cuda.default_workers_per_gpu(gpus) == fed
