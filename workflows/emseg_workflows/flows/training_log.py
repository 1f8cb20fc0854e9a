"""What a training leaves to be looked at beside its model: a table, a curve, and pictures of what it finds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emseg.errors import OutputError
from emseg.training.source import Sample
from emseg.training.spec import Progress
from emseg_workflows.curve import learning_curve
from emseg_workflows.pictures import coloured, contrast

EVERY = 50
"""Steps from one line of the table to the next."""
COLUMNS = ("step", "loss", "score", "rate", "tiles_per_second", "waiting")
PLAIN = 128
"""Value of grey where the truth is to be ignored."""


class TrainingLog:
    """``NAME.log.csv``, ``NAME.log.svg`` and ``NAME.pictures/`` beside the model ``NAME.safetensors``."""

    def __init__(self, model: Path, tune: Sequence[Sample]) -> None:
        self._table = model.with_name(f"{model.stem}.log.csv")
        self._pictures = model.with_name(f"{model.stem}.pictures")
        self._tune = tune
        self._due = False

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
        with self._table.open(newline="") as file:
            rows = [row for row in csv.reader(file) if not row[0].isdecimal() or int(row[0]) < progress.step]
        values = [getattr(progress, name) if name != "score" or validated else None for name in COLUMNS]
        rows.append(["" if value is None else f"{value:.6g}" for value in values])
        with self._table.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        loss, score = ([(float(row[0]), float(row[n])) for row in rows[1:] if row[n]] for n in (1, 2))
        self._table.with_suffix(".svg").write_text(learning_curve(loss, score))

    def validated(self, step: int, logits: Sequence[NDArray[np.float32]]) -> None:
        """Draw the middle slice of the first volume: grey values, truth, and the most likely classes."""
        self._due = True
        sample, found = self._tune[0], logits[0]
        z, classes = sample.raw.shape[0] // 2, len(found)
        truth = coloured(np.where(sample.truth[z] == 255, 0, sample.truth[z]).astype(np.uint8), classes)
        truth[sample.truth[z] == 255] = PLAIN
        panels = [contrast(sample.raw[z]), truth, coloured(found[:, z].argmax(axis=0).astype(np.uint8), classes)]
        Image.fromarray(np.concatenate(panels, axis=1)).save(self._pictures / f"step-{step:06d}.png")
