"""Segment electron-microscopy volumes too big for one machine, exactly as one pass over the whole volume would.

The commands of the command line are functions of this package, and the types that they take, return and raise are here, too.
Each is loaded when it is first used. Below this package is the engine, `emseg_core`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from emseg_core import __version__ as __version__

if TYPE_CHECKING:
    from emseg.flows.evaluate import evaluate as evaluate
    from emseg.flows.export import export as export
    from emseg.flows.ingest import ingest as ingest
    from emseg.flows.label import label as label
    from emseg.flows.plan import RunPlan as RunPlan
    from emseg.flows.plan import plan as plan
    from emseg.flows.preview import preview as preview
    from emseg.flows.records.progress import Status as Status
    from emseg.flows.repair import ChecksumReport as ChecksumReport
    from emseg.flows.repair import repair as repair
    from emseg.flows.repair import verify_checksums as verify_checksums
    from emseg.flows.report import report as report
    from emseg.flows.scoring.instances import evaluate_instances as evaluate_instances
    from emseg.flows.seams import evaluate_seams as evaluate_seams
    from emseg.flows.segment import segment as segment
    from emseg.flows.status import status as status
    from emseg.flows.status import watch as watch
    from emseg.flows.submit import Submission as Submission
    from emseg.flows.submit import prepare_submission as prepare_submission
    from emseg.flows.submit import submit as submit
    from emseg.flows.train import train as train
    from emseg.flows.verify import verify as verify
    from emseg.flows.view import view as view
    from emseg.placement import Placement as Placement
    from emseg.runs.dispatch import Policy as Policy
    from emseg.runs.events import BlockEnded as BlockEnded
    from emseg.runs.events import BlockRetried as BlockRetried
    from emseg.runs.events import Event as Event
    from emseg.runs.events import Noticed as Noticed
    from emseg.runs.events import RunEnded as RunEnded
    from emseg.runs.events import RunStarted as RunStarted
    from emseg.runs.events import WorkerJoined as WorkerJoined
    from emseg.runs.events import WorkerLeft as WorkerLeft
    from emseg.runs.stop import Stop as Stop
    from emseg.runs.stop import StoppedError as StoppedError
    from emseg.runs.tally import Report as Report
    from emseg.settings.run import RunSettings as RunSettings
    from emseg.slurm.site import Site as Site
    from emseg_core.box import Box as Box
    from emseg_core.errors import EmsegError as EmsegError
    from emseg_core.errors import InputError as InputError
    from emseg_core.errors import UnfinishedError as UnfinishedError
    from emseg_core.specs.model import ModelSpec as ModelSpec
    from emseg_core.specs.volume import VolumeSpec as VolumeSpec

FUNCTIONS = {
    "evaluate": "flows.evaluate",
    "evaluate_instances": "flows.scoring.instances",
    "evaluate_seams": "flows.seams",
    "export": "flows.export",
    "ingest": "flows.ingest",
    "label": "flows.label",
    "plan": "flows.plan",
    "prepare_submission": "flows.submit",
    "preview": "flows.preview",
    "repair": "flows.repair",
    "report": "flows.report",
    "segment": "flows.segment",
    "status": "flows.status",
    "submit": "flows.submit",
    "train": "flows.train",
    "verify": "flows.verify",
    "verify_checksums": "flows.repair",
    "view": "flows.view",
    "watch": "flows.status",
}
"""Commands, and the modules that they live in."""
TYPES = {
    "BlockEnded": "emseg.runs.events",
    "BlockRetried": "emseg.runs.events",
    "Box": "emseg_core.box",
    "ChecksumReport": "emseg.flows.repair",
    "EmsegError": "emseg_core.errors",
    "Event": "emseg.runs.events",
    "InputError": "emseg_core.errors",
    "ModelSpec": "emseg_core.specs.model",
    "Noticed": "emseg.runs.events",
    "Placement": "emseg.placement",
    "Policy": "emseg.runs.dispatch",
    "Report": "emseg.runs.tally",
    "RunEnded": "emseg.runs.events",
    "RunPlan": "emseg.flows.plan",
    "RunSettings": "emseg.settings.run",
    "RunStarted": "emseg.runs.events",
    "Site": "emseg.slurm.site",
    "Status": "emseg.flows.records.progress",
    "Stop": "emseg.runs.stop",
    "StoppedError": "emseg.runs.stop",
    "Submission": "emseg.flows.submit",
    "UnfinishedError": "emseg_core.errors",
    "VolumeSpec": "emseg_core.specs.volume",
    "WorkerJoined": "emseg.runs.events",
    "WorkerLeft": "emseg.runs.events",
}
"""What commands take, return and raise, and the modules that they live in."""

__all__ = [*FUNCTIONS, *TYPES]  # noqa: PLE0604  the names of both


def __getattr__(name: str) -> Any:
    if name in TYPES:
        return getattr(import_module(TYPES[name]), name)
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emseg.python import for_python

    found = for_python(getattr(import_module(f"{__name__}.{FUNCTIONS[name]}"), name))
    globals()[name] = found
    return found
