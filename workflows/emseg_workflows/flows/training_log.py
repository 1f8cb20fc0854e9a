"""What a training leaves to be looked at beside its model: a table, a curve, and pictures of what it finds."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emseg.errors import OutputError
from emseg.model.file import write_file
from emseg.printable import printable
from emseg.training.source import Sample
from emseg.training.spec import Progress
from emseg_workflows.curve import learning_curve
from emseg_workflows.pictures import coloured, contrast

EVERY = 50
"""Steps from one line of the table to the next."""
COLUMNS = ("step", "loss", "score", "rate", "tiles_per_second", "waiting")


class TrainingLog:
    """``NAME.log.csv``, ``NAME.log.svg`` and ``NAME.pictures/`` beside the model ``NAME.safetensors``."""

    def __init__(self, model: Path, tune: Sequence[Sample]) -> None:
        self._table = model.with_name(f"{model.stem}.log.csv")
        self._pictures = model.with_name(f"{model.stem}.pictures")
        self._tune = tune
        self._due = False
        self._told = False

    def begin(self, *, resume: bool) -> None:
        """Empty the table, unless a training goes on.

        Raises
        ------
        OutputError
            If nothing can be written there.
        """
        try:
            self._pictures.mkdir(exist_ok=True)
            if not (resume and self._table.exists()):
                self._table.write_text(",".join(COLUMNS) + "\n")
        except OSError as error:
            raise OutputError(f"{self._table} cannot be written ({error.strerror}): choose another output") from error

    def progress(self, progress: Progress) -> None:
        """Add a line now and then, and after each validation; lines of steps that are taken again are replaced."""
        validated, self._due = self._due, False
        if progress.step % EVERY and not validated:
            return
        values = [getattr(progress, name) if name != "score" or validated else None for name in COLUMNS]
        row = [str(progress.step), *("" if value is None else f"{value:.6g}" for value in values[1:])]
        with self._going_on():
            with self._table.open(newline="") as file:
                rows = [old for old in csv.reader(file) if len(old) == len(COLUMNS) and old[0].isdecimal()]
            rows = [old for old in rows if int(old[0]) < progress.step] + [row]
            table = "".join(",".join(line) + "\n" for line in (COLUMNS, *rows))
            write_file(self._table, table.encode())
            loss, score = ([(float(line[0]), float(line[n])) for line in rows if line[n]] for n in (1, 2))
            write_file(self._table.with_suffix(".svg"), learning_curve(loss, score).encode())

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A training does not end because there is no room for what is to be looked at."""
        try:
            yield
        except (OSError, OutputError) as error:
            if not self._told:
                print(printable(f"warning: the training goes on, but its log cannot be written: {error}"), file=sys.stderr)
            self._told = True

    def validated(self, step: int, logits: Sequence[NDArray[np.float32]]) -> None:
        """Draw the middle slice of the first volume: grey values, truth, and the most likely classes."""
        self._due = True
        with self._going_on():
            self._draw(step, logits[0])

    def _draw(self, step: int, found: NDArray[np.float32]) -> None:
        sample = self._tune[0]
        z, classes = sample.raw.shape[0] // 2, len(found)
        # What is to be ignored has the value of voxels that are not computed, and so their grey.
        panels = [
            contrast(sample.raw[z]),
            coloured(sample.truth[z], classes),
            coloured(found[:, z].argmax(axis=0).astype(np.uint8), classes),
        ]
        Image.fromarray(np.concatenate(panels, axis=1)).save(self._pictures / f"step-{step:06d}.png")
