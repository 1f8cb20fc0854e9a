"""Test that the package uses only the listed undocumented names of other libraries."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

IMPORTED = {
    "click.core.ParameterSource": "documented as the result of `get_parameter_source`, but exported from click.core alone",
    "dask_jobqueue.core.Job": "what the jobs of all batch systems have in common",
    "dask_jobqueue.lsf.LSFJob": "a job of LSF whose worker is ours",
    "dask_jobqueue.pbs.PBSJob": "the same of PBS",
    "dask_jobqueue.sge.SGEJob": "the same of SGE",
    "dask_jobqueue.slurm.SLURMJob": "a job whose script and options are ours",
    "distributed.cli.dask_worker.main": "what the command `dask worker` runs",
    "distributed.dashboard.components.scheduler.BOKEH_THEME": "our page looks like those beside it",
    "distributed.dashboard.components.scheduler.env": "the same",
    "distributed.dashboard.core.BokehApplication": "serves our page beside those of Dask",
    "distributed.dashboard.scheduler.template_variables": "the links between the pages",
    "distributed.deploy.spec.ProcessInterface": "a worker that `srun` starts",
    "distributed.http.utils.RequestHandler": "serves progress as JSON beside Dask's routes",
    "distributed.process.AsyncProcess": "ties the process of a worker to that of its nanny",
    "distributed.scheduler.DEFAULT_EXTENSIONS": "all of them but one",
    "distributed.spans.SpansSchedulerExtension": "that one, which keeps an entry for each task",
    "distributed.utils.format_dashboard_link": "the proxy that the user has configured",
    "distributed.utils.get_ip": "the address of this host",
    "zarr.codecs._v2.V2Codec": "filters and compressor of Zarr v2 are bounded",
    "zarr.core.array_spec.ArraySpec": "a type, for annotations alone",
    "zarr.core.codec_pipeline.BatchedCodecPipeline": "the pipeline whose codecs are bounded",
    "zarr.core.sync.sync": "runs on Zarr's event loop, to end it",
}
"""Names from modules that a library may change at any time, with the reason for each import."""
OVERRIDDEN = {
    "distributed.Nanny": {
        "instantiate": ["self"],
        "kill": ["self", "timeout", "reason"],
        "_on_worker_exit_sync": ["self", "exitcode"],
    },
    "distributed.Scheduler": {"start_http_server": ["self", "routes", "dashboard_address", "default_port", "ssl_options"]},
    "distributed.SpecCluster": {"_start": ["self"], "_close": ["self"], "_correct_state": ["self"]},
    "distributed.Worker": {"start_http_server": ["self", "routes", "dashboard_address", "default_port", "ssl_options"]},
    "distributed.spans.SpansSchedulerExtension": {"observe_tasks": ["self", "tss", "code", "span_metadata"]},
    "zarr.core.codec_pipeline.BatchedCodecPipeline": {
        "from_codecs": ["codecs", "batch_size"],
        "read_batch": ["self", "batch_info", "out", "drop_axes"],
    },
    "zarr.codecs._v2.V2Codec": {"_decode_single": ["self", "chunk_bytes", "chunk_spec"]},
    "zarr.abc.codec.BytesBytesCodec": {
        "_decode_single": ["self", "chunk_data", "chunk_spec"],
        "_encode_single": ["self", "chunk_data", "chunk_spec"],
    },
}
"""Methods that emseg's classes override or call, and their parameters."""


def imported() -> Iterator[str]:
    """Return the names that the package imports from other libraries."""
    for file in (*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "workflows" / "emseg").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)


def is_private(name: str) -> bool:
    """Return whether a library does not document this name."""
    library, *rest = name.split(".")
    if library in ("emseg", "emseg_core", "__future__"):
        return False
    hidden = any(part.startswith("_") or part == "core" for part in rest)
    inside = library in ("distributed", "dask_jobqueue") and len(rest) > 1
    return hidden or inside


def test_nothing_else_is_imported() -> None:
    assert {name for name in imported() if is_private(name)} == set(IMPORTED)


@pytest.mark.parametrize("name", IMPORTED)
def test_it_is_still_there(name: str) -> None:
    if name.startswith("dask_jobqueue"):
        pytest.importorskip("emseg.clusters.jobs")  # restores the handler of SIGINT, which dask-jobqueue replaces
    found(name)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_methods_are_as_we_replace_them(name: str) -> None:
    owner = found(name)
    for method, parameters in OVERRIDDEN[name].items():
        assert list(inspect.signature(getattr(owner, method)).parameters) == parameters, method


def found(name: str) -> Any:
    """Return the object of this name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)
