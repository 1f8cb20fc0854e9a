"""Inputs of `emseg evaluate`: a class map and its ground truth, both read a few slices at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import recipe_of
from emseg_core.box import Box, Triple
from emseg_core.errors import InputError, OutputError
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.lifecycle import is_output, open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.stacks.source import open_slices
from emseg_core.store.stacks.stack import SliceSource
from emseg_core.truth import CLASSES, IGNORE, check_meaning, class_truth, membrane_truth, whole_numbers


@dataclass(frozen=True, slots=True)
class ClassMap:
    """A class map, open for reading."""

    path: Place
    shape: Triple
    """Shape (z, y, x) in voxels."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    depth: int
    """Number of slices that are most efficiently read together."""

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Read the classes of some slices.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray
            ``(z, y, x) uint8``.
        """
        raise NotImplementedError

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8] | None:  # noqa: ARG002  none are stored
        """Read the stored probability of a class in some slices.

        Parameters
        ----------
        label
            Number of the class.
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        ndarray or None
            ``(z, y, x) uint8`` from 0 to 254; None if there are no probabilities.
        """
        return None


@dataclass(frozen=True, slots=True)
class _Stored(ClassMap):
    """Class map in the output of a run."""

    output: Output

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.output.read_labels(self._box(start, stop))

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8] | None:
        if not self.output.keeps_probabilities:
            return None
        stored: NDArray[np.uint8] = self.output.read_probabilities(self._box(start, stop))[label]
        return stored

    def _box(self, start: int, stop: int) -> Box:
        return Box((start, 0, 0), (stop, *self.shape[1:])).shift(self.output.region.start)


@dataclass(frozen=True, slots=True)
class _Plain(ClassMap):
    """Class map in any other volume, whose values have the same meaning as those of the truth."""

    source: SliceSource
    truth: Truth

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        meaning = {name: (label,) for label, name in enumerate(CLASSES)} if self.truth.ids else self.truth.meaning
        with _where(self.path, start, stop):
            return class_truth(whole_numbers(self.source.read(start, stop)), meaning, self.classes)


@dataclass(slots=True)
class Truth:
    """Ground truth, open for reading. The options are those of `emseg.flows.evaluate.evaluate`.

    Raises
    ------
    InputError
        If the options give no meaning to the values, or two.
    """

    path: Place
    source: SliceSource
    labels: Mapping[str, tuple[int, ...]] | None
    ids: bool
    planar: bool
    ignore: tuple[int, ...]
    part: Box = field(init=False)
    """The part from whose start slices, rows and columns are counted."""

    def __post_init__(self) -> None:
        if self.ids == bool(self.labels):
            raise InputError(
                f"the values of {self.path} need exactly one meaning: give the values of each class with --labels, or --ids "
                "for instance ids"
            )
        self.part = Box.of_shape(self.source.shape)

    @property
    def shape(self) -> Triple:
        """Shape (z, y, x) of the part in voxels."""
        return self.part.shape

    @property
    def meaning(self) -> Mapping[str, tuple[int, ...]]:
        """Values of each class by name; empty for instance ids."""
        return self.labels or dict.fromkeys(CLASSES, ())

    def check(self, classes: tuple[str, ...]) -> None:
        """Refuse a truth whose classes are not among those of an output.

        Parameters
        ----------
        classes
            Classes of the output.

        Raises
        ------
        InputError
            If a class is not.
        """
        if self.ids and not set(CLASSES) <= set(classes):
            raise InputError(
                f"--ids gives the classes {' and '.join(CLASSES)}, but the output has {', '.join(classes)}: give a truth of "
                "classes with --labels"
            )
        check_meaning(self.meaning, classes, self.ignore)

    def classes(self, start: int, stop: int, names: tuple[str, ...]) -> NDArray[np.uint8]:
        """Read the true classes of some slices.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.
        names
            Names of the classes, in the order of the label values.

        Returns
        -------
        ndarray
            Class of each voxel, ``(z, y, x) uint8``; 255 where it is to be ignored.

        Raises
        ------
        InputError
            If a value has no meaning.
        """
        start, stop = start + self.part.start[0], stop + self.part.start[0]
        plane = self.part.slices()[1:]
        if not self.ids:
            with _where(self.path, start, stop):
                values = whole_numbers(self.source.read(start, stop))[:, *plane]
                return class_truth(values, self.meaning, names, self.ignore)
        before, after = max(0, start - 1), min(self.source.shape[0], stop + 1)  # includes the neighbours in z
        with _where(self.path, before, after):
            values = whole_numbers(self.source.read(before, after))
        values[np.isin(values, self.ignore)] = 0
        made = membrane_truth(values, planar=self.planar)[start - before : stop - before]
        places = np.full(IGNORE + 1, IGNORE, np.uint8)
        places[: len(CLASSES)] = [names.index(name) for name in CLASSES]
        return places[made[:, *plane]]


@contextmanager
def _where(path: Place, start: int, stop: int) -> Iterator[None]:
    """Add the slices of a volume to errors about its values."""
    try:
        yield
    except InputError as error:
        where = f"slice {start}" if stop == start + 1 else f"slices {start} to {stop - 1}"
        raise InputError(f"in {where} of {path}, {error}") from error


def open_class_map(path: Place, truth: Truth, stack: ExitStack) -> ClassMap:
    """Open the class map at a path. A truth for the whole volume is cropped to the region of the output.

    Parameters
    ----------
    path
        An output, or a volume of class values.
    truth
        Its ground truth.
    stack
        Keeps the class map open until it is closed.

    Returns
    -------
    ClassMap
        The class map.

    Raises
    ------
    InputError
        If there is no volume, the output is damaged or incomplete, or it lacks classes of the truth.
    """
    if not is_output(path):
        source = stack.enter_context(open_slices(path))
        return _Plain(path, source.shape, tuple(truth.meaning), 1, source, truth)
    output = open_output(path)
    output.require_classes()
    check_complete(output)
    if truth.shape != output.region.shape and truth.shape == recipe_of(output).volume.shape:
        truth.part = output.region
    truth.check(output.classes)
    return _Stored(output.path, output.region.shape, output.classes, output.chunk[0], output)


def check_complete(output: Output) -> None:
    """Check that all blocks of an output are computed.

    Parameters
    ----------
    output
        The open output.

    Raises
    ------
    OutputError
        If one is not.
    """
    done = output.done_units()
    if not done.all():
        left = f"{np.count_nonzero(~done)} of {done.size} blocks of {output.path}"
        raise OutputError(f"{left} are not computed: finish the run with `emseg run` first")


def chosen_slices(made: ClassMap, known: Truth, slices: tuple[int, int] | None) -> tuple[int, int, int]:
    """Determine the slices to compare.

    Parameters
    ----------
    made
        The class map.
    known
        Its ground truth: for all slices, or for the chosen ones.
    slices
        First slice of the output, counted from 0, and the one after the last; None for all.

    Returns
    -------
    first, stop, offset : int
        First slice of the output, the one after the last, and the slice of the output that is slice 0 of the truth.

    Raises
    ------
    InputError
        If there are no such slices, or the truth has another shape.
    """
    depth, *plane = made.shape
    first, stop = slices or (0, depth)
    if not 0 <= first < stop <= depth:
        raise InputError(
            f"{made.path} has slices 0 to {depth - 1}, not {first}:{stop}: choose from them, as in --slices 0:{depth}"
        )
    if list(known.shape[1:]) != plane:
        raise InputError(
            f"slices of {made.path} have shape {tuple(plane)}, but those of {known.path} {known.shape[1:]}: give the truth of "
            "the region of the output"
        )
    if known.shape[0] == depth:
        return first, stop, 0
    if known.shape[0] == stop - first:
        return first, stop, first
    which = f"{made.path} has {depth} slices" + (f", of which {stop - first} were chosen" if slices else "")
    raise InputError(
        f"{which}, but {known.path} has {known.shape[0]}: give the slices of the output for which it is the truth with --slices"
    )
