"""Prometheus metrics of runs, on the scheduler's page ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emseg.dashboard.board import Board

TOTALS = {"voxels": "Voxels written", "failures": "Blocks that failed", "retries": "Retries of blocks"}
"""Totals of a `emseg.dashboard.board.RunUpdate`, and what they count."""


class RunCollector(Collector):
    """Collector for the boards of one scheduler: the last one in this process that shows runs, as there is one ``/metrics``."""

    def __init__(self) -> None:
        self.boards: Mapping[str, Board] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all known runs.

        Yields
        ------
        Metric
            One for each quantity, labelled by output.
        """
        blocks = GaugeMetricFamily("emseg_blocks", "Blocks by state", labels=["output", "state"])
        totals = {name: CounterMetricFamily(f"emseg_{name}", text, labels=["output"]) for name, text in TOTALS.items()}
        text = "Seconds that blocks spent in each stage"
        spent = CounterMetricFamily("emseg_stage_seconds", text, labels=["output", "stage"])
        for output, board in {board.description.output: board for board in self.boards.values()}.items():
            for state, count in board.totals.items():
                blocks.add_metric([output, state], count)
            for name, family in totals.items():
                family.add_metric([output], getattr(board.last, name))
            for stage, seconds in board.last.stages.items():
                spent.add_metric([output, stage], seconds)
        yield from (blocks, *totals.values(), spent)


collector = RunCollector()
REGISTRY.register(collector)
