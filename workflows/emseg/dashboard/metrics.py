"""Prometheus metrics of runs, on the scheduler's page ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emseg.dashboard.board import Board


class RunCollector(Collector):
    """Collector for the boards of one scheduler: the last one in this process that shows runs, as there is one ``/metrics``."""

    def __init__(self) -> None:
        self.boards: Callable[[], Iterable[Board]] = tuple

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all known runs.

        Yields
        ------
        Metric
            One for each quantity, labelled by output.
        """
        blocks = GaugeMetricFamily("emseg_blocks", "Blocks by state", labels=["output", "state"])
        voxels = CounterMetricFamily("emseg_voxels", "Voxels written", labels=["output"])
        failures = CounterMetricFamily("emseg_failures", "Blocks that failed", labels=["output"])
        retries = CounterMetricFamily("emseg_retries", "Retries of blocks", labels=["output"])
        spent = CounterMetricFamily(
            "emseg_stage_seconds", "Seconds that blocks spent in each stage", labels=["output", "stage"]
        )
        for board in {board.description.output: board for board in self.boards()}.values():
            output, last = board.description.output, board.last
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
