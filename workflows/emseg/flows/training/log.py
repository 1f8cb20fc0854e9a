"""Log of a training, next to its model: a table, a learning curve, and pictures of predictions."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emseg.pages.charts import learning_curve
from emseg.pages.pictures import coloured, contrast
from emseg_core.errors import OutputError
from emseg_core.model.file import write_file
from emseg_core.printable import printable
from emseg_core.training.spec import Progress
from emseg_core.training.truth_reader import ValidationVolume

LOG_STEPS = 50
"""Number of steps between two lines of the table."""
TABLE_COLUMNS = ("step", "loss", "score", "rate", "tiles_per_second", "waiting")


class TrainingLog:
    """Writer of ``NAME.log.csv``, ``NAME.log.svg`` and ``NAME.pictures/`` next to the model ``NAME.safetensors``."""

    def __init__(self, model: Path, tune: Sequence[ValidationVolume]) -> None:
        self._table = model.with_name(f"{model.stem}.log.csv")
        self._pictures = model.with_name(f"{model.stem}.pictures")
        self._tune = tune
        self._due = False
        self._warned = False

    def begin(self, *, resume: bool) -> None:
        """Start the log: with an empty table, unless a training is resumed.

        Parameters
        ----------
        resume
            Whether the training resumes from a checkpoint.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        try:
            self._pictures.mkdir(exist_ok=True)
            if not (resume and self._table.exists()):
                self._table.write_text(",".join(TABLE_COLUMNS) + "\n")
        except OSError as error:
            raise OutputError(f"{self._table} cannot be written ({error.strerror}): choose another output") from error

    def progress(self, progress: Progress) -> None:
        """Add a line every `LOG_STEPS` steps and after each validation, replacing lines of steps that are repeated.

        Parameters
        ----------
        progress
            What a step has reached.
        """
        validated, self._due = self._due, False
        if progress.step % LOG_STEPS and not validated:
            return
        values = [getattr(progress, name) if name != "score" or validated else None for name in TABLE_COLUMNS]
        row = [str(progress.step), *("" if value is None else f"{value:.6g}" for value in values[1:])]
        with self._errors_as_warning():
            with self._table.open(newline="") as file:
                rows = [old for old in csv.reader(file) if len(old) == len(TABLE_COLUMNS) and old[0].isdecimal()]
            rows = [old for old in rows if int(old[0]) < progress.step] + [row]
            table = "".join(",".join(line) + "\n" for line in (TABLE_COLUMNS, *rows))
            write_file(self._table, table.encode())
            loss, score = ([(float(line[0]), float(line[n])) for line in rows if line[n]] for n in (1, 2))
            write_file(self._table.with_suffix(".svg"), learning_curve(loss, score).encode())

    @contextmanager
    def _errors_as_warning(self) -> Iterator[None]:
        """Warn once, instead of ending the training, if the log cannot be written."""
        try:
            yield
        except (OSError, OutputError) as error:
            if not self._warned:
                print(printable(f"warning: the training continues, but its log cannot be written: {error}"), file=sys.stderr)
            self._warned = True

    def validated(self, step: int, logits: Sequence[NDArray[np.float32]]) -> None:
        """Draw the middle slice of the first volume: grey values, truth, and the most likely classes.

        Of a network without exclusive classes, the first channel is drawn.

        Parameters
        ----------
        step
            Number of the step.
        logits
            Logits of each validation volume, ``(class, z, y, x) float32``.
        """
        self._due = True
        with self._errors_as_warning():
            self._draw(step, logits[0])

    def _draw(self, step: int, found: NDArray[np.float32]) -> None:
        sample = self._tune[0]
        z, classes = sample.raw.shape[0] // 2, len(found)
        if sample.truth.ndim == 4:
            truth, labels, classes = sample.truth[0, z], (found[0, z] >= 0).astype(np.uint8), 2
        else:
            truth, labels = sample.truth[z], found[:, z].argmax(axis=0).astype(np.uint8)
        # Ignored voxels have the value of voxels that are not computed, and thus their grey.
        panels = [
            contrast(sample.raw[z]),
            coloured(truth, classes),
            coloured(labels, classes),
        ]
        Image.fromarray(np.concatenate(panels, axis=1)).save(self._pictures / f"step-{step:06d}.png")
