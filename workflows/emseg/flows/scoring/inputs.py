"""Inputs of `emseg evaluate`: a class map and its ground truth, both read a few slices at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.run_log import recipe_of
from emseg_core.box import Box, Triple
from emseg_core.errors import InputError, OutputError
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.lifecycle import is_output, open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.stacks.source import SliceSource, open_slices
from emseg_core.truth import CLASSES, IGNORE, check_meaning, class_truth, membrane_truth, whole_numbers


class ClassMap(Protocol):
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
        ...

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8] | None:
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
        ...


class _Stored:
    """Class map in the output of a run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.path = output.path
        self.shape = output.region.shape
        self.classes = output.classes
        self.depth = output.chunk[0]

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self._output.read_labels(self._box(start, stop))

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8] | None:
        if not self._output.keeps_probabilities:
            return None
        stored: NDArray[np.uint8] = self._output.read_probabilities(self._box(start, stop))[label]
        return stored

    def _box(self, start: int, stop: int) -> Box:
        return Box((start, 0, 0), (stop, *self.shape[1:])).shift(self._output.region.start)


class _Plain:
    """Class map in any other volume, whose values have the same meaning as those of the truth."""

    depth = 1

    def __init__(self, path: Place, source: SliceSource, truth: Truth) -> None:
        self.path = path
        self.shape = source.shape
        self.classes = tuple(truth.meaning)
        self._source = source
        self._truth = truth

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        meaning = {name: (label,) for label, name in enumerate(CLASSES)} if self._truth.ids else self._truth.meaning
        with _where(self.path, start, stop):
            return class_truth(whole_numbers(self._source.read(start, stop)), meaning, self.classes)

    def probability(self, label: int, start: int, stop: int) -> None:  # noqa: ARG002  the protocol's signature
        return None


class Truth:
    """Ground truth, open for reading."""

    def __init__(
        self,
        path: Place,
        source: SliceSource,
        labels: Mapping[str, tuple[int, ...]] | None,
        ids: bool,
        planar: bool,
        ignore: tuple[int, ...],
    ) -> None:
        """Open a ground truth. The options are those of `emseg.flows.evaluate.evaluate`.

        Raises
        ------
        InputError
            If the options give no meaning to the values, or two.
        """
        if ids == bool(labels):
            raise InputError(
                f"the values of {path} need exactly one meaning: give the values of each class with --labels, or --ids for "
                "instance ids"
            )
        self.path = path
        self.shape = source.shape
        self.ids = ids
        self.meaning: Mapping[str, tuple[int, ...]] = labels or dict.fromkeys(CLASSES, ())
        self._source = source
        self._planar = planar
        self._ignore = ignore
        self._part = Box.of_shape(source.shape)

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
        check_meaning(self.meaning, classes, self._ignore)

    def crop(self, part: Box) -> None:
        """Restrict the truth to a part, from whose start slices, rows and columns are counted from now on.

        Parameters
        ----------
        part
            A box within the truth, in voxels.
        """
        self._part = part
        self.shape = part.shape

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
        start, stop = start + self._part.start[0], stop + self._part.start[0]
        plane = self._part.slices()[1:]
        if not self.ids:
            with _where(self.path, start, stop):
                values = whole_numbers(self._source.read(start, stop))[:, *plane]
                return class_truth(values, self.meaning, names, self._ignore)
        before, after = max(0, start - 1), min(self._source.shape[0], stop + 1)  # includes the neighbours in z
        with _where(self.path, before, after):
            values = whole_numbers(self._source.read(before, after))
        values[np.isin(values, self._ignore)] = 0
        made = membrane_truth(values, planar=self._planar)[start - before : stop - before]
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
        return _Plain(path, stack.enter_context(open_slices(path)), truth)
    output = open_output(path)
    check_complete(output)
    if truth.shape != output.region.shape and truth.shape == recipe_of(output).volume.shape:
        truth.crop(output.region)
    truth.check(output.classes)
    return _Stored(output)


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
