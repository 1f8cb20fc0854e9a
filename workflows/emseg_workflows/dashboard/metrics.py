"""The numbers of runs for Prometheus, on the scheduler's page ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emseg_workflows.dashboard.board import Board


class RunCollector(Collector):
    """Collects from the boards of the scheduler that was asked to show them last; a process has one ``/metrics``."""

    def __init__(self) -> None:
        self.boards: Callable[[], Iterable[Board]] = tuple

    def collect(self) -> Iterator[Metric]:
        """The metrics of all runs that are known."""
        blocks = GaugeMetricFamily("emseg_blocks", "Blocks of a run by state", labels=["output", "state"])
        voxels = CounterMetricFamily("emseg_voxels", "Voxels written", labels=["output"])
        failures = CounterMetricFamily("emseg_failures", "Blocks that failed", labels=["output"])
        retries = CounterMetricFamily("emseg_retries", "Tries of blocks that were made again", labels=["output"])
        spent = CounterMetricFamily("emseg_stage_seconds", "What the time of blocks went into", labels=["output", "stage"])
        for board in {board.opening.output: board for board in self.boards()}.values():
            output, last = board.opening.output, board.last
            for state, count in board.totals.items():
                blocks.add_metric([output, state], count)
            voxels.add_metric([output], last.voxels)
            failures.add_metric([output], last.failures)
            retries.add_metric([output], last.retries)
            for stage, seconds in last.stages.items():
                spent.add_metric([output, stage], seconds)
        yield from (blocks, voxels, failures, retries, spent)


collector = RunCollector()
REGISTRY.register(collector)
