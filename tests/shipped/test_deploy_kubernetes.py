"""Test the manifests: they fit Kubernetes and the Dask operator, admit no one else, and their commands run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from runs import bytes_of, free_port, save_volume, texture

from emseg.clusters.local import LOOPBACK
from emseg.flows.segment import segment
from emseg_core import __version__
from emseg_core.grid.cost import BLOCKS_IN_FLIGHT

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
KUBERNETES = ("1.33", "1.37")
RUN = {"dask.org/cluster-name": "emseg"}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object with only these members."""
    members = {**required, **optional}
    return {"type": "object", "properties": members, "required": list(required), "additionalProperties": False}


LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
META = closed({}, annotations=LABELS, labels=LABELS)
SPEC = {"type": "object"}  # a PodSpec or ServiceSpec: these are checked as the operator creates them
CLUSTER = closed(
    {
        "scheduler": closed({"spec": SPEC, "service": SPEC}, metadata=META),
        "worker": closed({"spec": SPEC}, replicas={"type": "integer", "minimum": 1}, metadata=META),
    },
    idleTimeout={"type": "integer"},
)
DASK_JOB = closed(
    {
        "apiVersion": {"const": "kubernetes.dask.org/v1"},
        "kind": {"const": "DaskJob"},
        "metadata": closed({"name": {"type": "string"}, "namespace": {"const": "emseg"}}, annotations=LABELS, labels=LABELS),
        "spec": closed({"job": closed({"spec": SPEC}, metadata=META), "cluster": closed({"spec": CLUSTER}, metadata=META)}),
    }
)
"""Schema after `operator/customresources/` (`daskjob.yaml`, `templates.yaml`) of dask-kubernetes 2026.3.0, BSD licence."""


def documents(name: str) -> list[dict[str, Any]]:
    """Return the documents of a manifest."""
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def job(name: str) -> dict[str, Any]:
    """Return the only DaskJob of a manifest, with its pods by role."""
    (found,) = documents(name)
    return found


def pods(name: str) -> dict[str, dict[str, Any]]:
    """Return the PodSpec of each role in a manifest."""
    spec = job(name)["spec"]
    cluster = spec["cluster"]["spec"]
    return {"job-runner": spec["job"]["spec"], "scheduler": cluster["scheduler"]["spec"], "worker": cluster["worker"]["spec"]}


def containers(name: str) -> list[dict[str, Any]]:
    """Return each container of a manifest."""
    return [one for pod in pods(name).values() for one in (*pod.get("initContainers", ()), *pod["containers"])]


def container(name: str, called: str) -> dict[str, Any]:
    """Return the container with this name."""
    (found,) = [one for one in containers(name) if one["name"] == called]
    return found


def made_by_operator(name: str) -> Iterator[dict[str, Any]]:
    """Return what the operator makes of a DaskJob, as `operator/controller/controller.py` of dask-kubernetes 2026.3.0 does."""
    title = job(name)["metadata"]["name"]
    env = [{"name": "DASK_WORKER_NAME", "value": "one"}, {"name": "DASK_SCHEDULER_ADDRESS", "value": "tcp://..."}]
    for role, pod in pods(name).items():
        labels = {"dask.org/cluster-name": title, "dask.org/component": role, "sidecar.istio.io/inject": "false"}
        meta = {"name": f"{title}-{role}", "labels": labels}
        given = {**pod, "containers": [{**one, "env": one["env"] + env} for one in pod["containers"]]}
        if role == "job-runner":
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": given}
            continue
        spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": meta, "spec": given}}
        yield {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    service = job(name)["spec"]["cluster"]["spec"]["scheduler"]["service"]
    yield {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"{title}-scheduler"}, "spec": service}


both = pytest.mark.parametrize("name", ["cpu.yaml", "cuda.yaml"])


def test_no_manifest_is_without_a_test() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {"namespace.yaml", "cpu.yaml", "cuda.yaml"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_each_field(version: str) -> None:
    made = [*documents("namespace.yaml"), *made_by_operator("cpu.yaml"), *made_by_operator("cuda.yaml")]
    assert len(made) == 3 + 4 + 4
    for one in made:
        kubernetes_validate.validate(one, version, strict=True)
    wrong = {**made[0], "spec": {"finalisers": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@both
def test_the_operator_knows_each_field(name: str) -> None:
    jsonschema.validate(job(name), DASK_JOB)
    assert job(name)["metadata"]["name"] == RUN["dask.org/cluster-name"]


@both
def test_all_images_are_this_version(name: str) -> None:
    tag = f"emseg:{__version__}" + ("-cuda" if name == "cuda.yaml" else "")
    assert {one["image"] for one in containers(name)} == {tag}


@both
def test_pods_have_no_more_rights_than_they_need(name: str) -> None:
    (namespace, *_) = documents("namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(name).values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    for one in containers(name):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@both
def test_requests_are_limits_and_only_workers_have_a_gpu(name: str) -> None:
    for one in containers(name):
        resources = one["resources"]
        assert resources["requests"] == resources["limits"]
        assert resources["limits"].keys() >= {"cpu", "memory"}
        on_gpu = name == "cuda.yaml" and one["name"] == "worker"
        assert resources["limits"].get("nvidia.com/gpu") == ("1" if on_gpu else None)
        assert {type(amount) for amount in resources["limits"].values()} == {str}, "the operator's schema takes no numbers"
    assert ("--device" in container(name, "job")["args"]) == (name == "cuda.yaml")


def test_only_a_runs_own_pods_reach_it() -> None:
    policy = next(one for one in documents("namespace.yaml") if one["kind"] == "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": RUN}}]}]
    peers, names = policy["egress"]
    assert peers == {"to": [{"podSelector": {"matchLabels": RUN}}]}
    assert {port["port"] for port in names["ports"]} == {53}


@both
def test_no_dashboard_is_exposed(name: str) -> None:
    service = job(name)["spec"]["cluster"]["spec"]["scheduler"]["service"]
    assert service["type"] == "ClusterIP"
    assert service["selector"] == {**RUN, "dask.org/component": "scheduler"}
    assert [port["port"] for port in service["ports"]] == [8786]
    for called in ("scheduler", "worker"):
        command = container(name, called)["command"]
        assert command[command.index("--dashboard-address") + 1].startswith(LOOPBACK)
    assert "--no-dashboard" in container(name, "worker")["command"]


@both
def test_workers_are_as_a_run_starts_them(name: str) -> None:
    command = container(name, "worker")["command"]
    assert command[command.index("--nthreads") + 1] == str(BLOCKS_IN_FLIGHT)


@both
def test_volumes_are_mounted_everywhere(name: str) -> None:
    claim = next(one for one in documents("namespace.yaml") if one["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(name).values():
        assert {"name": "data", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
    for one in containers(name):
        assert {mount["mountPath"] for mount in one["volumeMounts"]} == {"/data", "/tmp"}


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process with this command during the ``with`` block."""
    process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_commands_make_a_run(tmp_path: Path) -> None:
    """The commands are those of the CPU manifest. The cluster starts after the job has begun to wait for it, as in practice."""
    volume = save_volume(tmp_path / "volume.zarr", texture((3, 40, 40)))
    port = free_port()
    changes = {
        "emseg-scheduler:8786": f"{LOOPBACK}:{port}",
        "^8786$": f"{port} --host {LOOPBACK}",
        f"{LOOPBACK}:8787": f"{LOOPBACK}:0",
        "/data/": f"{tmp_path}/",
        "^/tmp$": str(tmp_path),
        r"^\$\(DASK_WORKER_NAME\)$": "one",
        "^python$": sys.executable,
        "^dask$": f"{sys.executable} -m dask",
    }

    def here(words: list[str]) -> list[str]:
        changed = [_changed(word, changes) for word in words]
        return [part for word in changed for part in ([word] if "\n" in word else word.split())]

    wait, worker, run = (container("cpu.yaml", called) for called in ("wait", "worker", "job"))
    with ExitStack() as held:
        waiting = held.enter_context(running(here(wait["command"]), tmp_path))
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(5)
        held.enter_context(running(here(container("cpu.yaml", "scheduler")["command"]), tmp_path))
        held.enter_context(running(here(worker["command"]), tmp_path))
        assert waiting.wait(60) == 0
        command = [sys.executable, "-m", "emseg", *here(run["args"])]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    segment(volume, tmp_path / "alone.zarr", workers=0)
    assert bytes_of(tmp_path / "volume.emseg.zarr") == bytes_of(tmp_path / "alone.zarr")


def _changed(word: str, changes: dict[str, str]) -> str:
    for pattern, other in changes.items():
        word = re.sub(pattern, other.replace("\\", "\\\\"), word)
    return word
