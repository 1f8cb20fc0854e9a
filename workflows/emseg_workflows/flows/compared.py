"""What `emseg evaluate` compares: a class map and the truth for it, both read a few slices at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emseg.box import Box, Triple
from emseg.errors import InputError, OutputError
from emseg.store.ledger import Output
from emseg.store.output import is_output, open_output
from emseg.store.place import Place
from emseg.store.source import SliceSource, open_slices
from emseg.truth import CLASSES, IGNORE, check_meaning, class_truth, membrane_truth, whole_numbers
from emseg_workflows.flows.record import recipe_of


class ClassMap(Protocol):
    """A class map, open to read."""

    path: Place
    shape: Triple
    """Shape (z, y, x) in voxels."""
    classes: tuple[str, ...]
    """Name of each class, in the order of the label values from 0."""
    depth: int
    """Slices that are best read at once."""

    def labels(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Class of each voxel of some slices, ``(z, y, x) uint8``."""
        ...

    def probability(self, label: int, start: int, stop: int) -> NDArray[np.uint8] | None:
        """Stored probability of a class, ``(z, y, x) uint8`` from 0 to 254; None if there are no probabilities."""
        ...


class _Stored:
    """The output of a run."""

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
    """Somebody's volume of class values, which mean what those of the truth do."""

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
    """The truth, open to read."""

    def __init__(
        self,
        path: Place,
        source: SliceSource,
        labels: Mapping[str, tuple[int, ...]] | None,
        ids: bool,
        planar: bool,
        ignore: tuple[int, ...],
    ) -> None:
        """The options are those of `emseg_workflows.flows.evaluate.evaluate`.

        Raises
        ------
        InputError
            If they do not say what the values mean, or in two ways.
        """
        if ids == bool(labels):
            raise InputError(
                f"what the values of {path} mean must be said in one way: the classes, with --labels membrane=0,inside=255 "
                "say, or --ids for instance ids"
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

        Raises
        ------
        InputError
            If one is not.
        """
        if self.ids and not set(CLASSES) <= set(classes):
            raise InputError(
                f"ids become {' and '.join(CLASSES)}, but the classes of the output are {', '.join(classes)}: give a truth of "
                "classes, with --labels"
            )
        check_meaning(self.meaning, classes, self._ignore)

    def crop(self, part: Box) -> None:
        """Count slices, rows and columns from the start of a part, and leave out what lies beyond it."""
        self._part = part
        self.shape = part.shape

    def classes(self, start: int, stop: int, names: tuple[str, ...]) -> NDArray[np.uint8]:
        """Class ``(z, y, x) uint8`` of each voxel of some slices, by its place among the names; 255 ignore."""
        start, stop = start + self._part.start[0], stop + self._part.start[0]
        plane = self._part.slices()[1:]
        if not self.ids:
            with _where(self.path, start, stop):
                values = whole_numbers(self._source.read(start, stop))[:, *plane]
                return class_truth(values, self.meaning, names, self._ignore)
        before, after = max(0, start - 1), min(self._source.shape[0], stop + 1)  # the neighbours in z
        with _where(self.path, before, after):
            values = whole_numbers(self._source.read(before, after))
        values[np.isin(values, self._ignore)] = 0
        made = membrane_truth(values, planar=self._planar)[start - before : stop - before]
        places = np.full(IGNORE + 1, IGNORE, np.uint8)
        places[: len(CLASSES)] = [names.index(name) for name in CLASSES]
        return places[made[:, *plane]]


@contextmanager
def _where(path: Place, start: int, stop: int) -> Iterator[None]:
    """Says in which slices of a volume there is a value that cannot be used."""
    try:
        yield
    except InputError as error:
        where = f"slice {start}" if stop == start + 1 else f"slices {start} to {stop - 1}"
        raise InputError(f"in {where} of {path}, {error}") from error


def open_class_map(path: Place, truth: Truth, stack: ExitStack) -> ClassMap:
    """The class map at a path, open until the stack is closed; where the truth is for more, it is cropped.

    Raises
    ------
    InputError
        If it is an output that is damaged or not complete, or no volume, or its classes are not those of the truth.
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
    """Refuse an output with blocks that are not computed.

    Raises
    ------
    OutputError
        If there is one.
    """
    done = output.done_units()
    if not done.all():
        left = f"{np.count_nonzero(~done)} of {done.size} blocks of {output.path}"
        raise OutputError(f"{left} are not computed: finish it with `emseg run` first")


def chosen_slices(made: ClassMap, known: Truth, slices: tuple[int, int] | None) -> tuple[int, int, int]:
    """First slice of the output and the one after the last, and which of the output's is slice 0 of the truth.

    Raises
    ------
    InputError
        If there are no such slices, or the truth has other ones or another shape.
    """
    depth, *plane = made.shape
    first, stop = slices or (0, depth)
    if not 0 <= first < stop <= depth:
        raise InputError(
            f"{made.path} has slices 0 to {depth - 1}: give some of them with --slices 0:{depth}, not {first}:{stop}"
        )
    if list(known.shape[1:]) != plane:
        raise InputError(
            f"slices of {made.path} have shape {tuple(plane)}, but those of {known.path} {known.shape[1:]}: give the truth of "
            "what the output covers"
        )
    if known.shape[0] == depth:
        return first, stop, 0
    if known.shape[0] == stop - first:
        return first, stop, first
    which = f"{made.path} has {depth} slices" + (f", of which {stop - first} were chosen" if slices else "")
    raise InputError(
        f"{which}, but {known.path} has {known.shape[0]}: say with --slices A:B for which slices of the output it is the truth"
    )
