"""How all blocks get run, and where: Dask, clusters and the command line.

The flows are importable from here, ``from emseg_workflows import segment``, and loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emseg_workflows.flows.evaluate import evaluate as evaluate
    from emseg_workflows.flows.export import export as export
    from emseg_workflows.flows.ingest import ingest as ingest
    from emseg_workflows.flows.label import label as label
    from emseg_workflows.flows.matching import compare_instances as compare_instances
    from emseg_workflows.flows.plan import plan_run as plan_run
    from emseg_workflows.flows.preview import preview as preview
    from emseg_workflows.flows.repair import check as check
    from emseg_workflows.flows.repair import repair as repair
    from emseg_workflows.flows.report import report_page as report_page
    from emseg_workflows.flows.seams import seams as seams
    from emseg_workflows.flows.segment import segment as segment
    from emseg_workflows.flows.status import status as status
    from emseg_workflows.flows.status import watch as watch
    from emseg_workflows.flows.submit import prepare_submission as prepare_submission
    from emseg_workflows.flows.submit import submit as submit
    from emseg_workflows.flows.train import train as train
    from emseg_workflows.flows.verify import verify as verify
    from emseg_workflows.flows.view import view as view

_FLOWS = {
    "check": "repair",
    "compare_instances": "matching",
    "evaluate": "evaluate",
    "export": "export",
    "ingest": "ingest",
    "label": "label",
    "plan_run": "plan",
    "prepare_submission": "submit",
    "preview": "preview",
    "repair": "repair",
    "report_page": "report",
    "seams": "seams",
    "segment": "segment",
    "status": "status",
    "submit": "submit",
    "train": "train",
    "verify": "verify",
    "view": "view",
    "watch": "status",
}
"""Public function, and the module of `emseg_workflows.flows` that it lives in."""

__all__ = [
    "check",
    "compare_instances",
    "evaluate",
    "export",
    "ingest",
    "label",
    "plan_run",
    "prepare_submission",
    "preview",
    "repair",
    "report_page",
    "seams",
    "segment",
    "status",
    "submit",
    "train",
    "verify",
    "view",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _FLOWS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.flows.{_FLOWS[name]}"), name)
