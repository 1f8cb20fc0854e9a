"""The files of a folder of slices, in the order that the numbers in their names say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from emseg.errors import VolumeError
from emseg.store.blame import reason
from emseg.store.nodes import TIFF_SUFFIXES

LISTED = 8
"""Most ranges of numbers that an error message lists."""


@dataclass(frozen=True, slots=True)
class SliceFiles:
    """A folder's slices in order, first slice first."""

    files: tuple[Path, ...]
    """The files that are there."""
    places: tuple[int, ...]
    """z of each of them, counted from 0."""
    missing: tuple[int, ...] = ()
    """z of each slice between the first and the last that has no file."""

    @property
    def depth(self) -> int:
        """Number of slices, the missing ones included."""
        return len(self.files) + len(self.missing)

    def within(self, start: int, stop: int) -> list[tuple[int, Path]]:
        """z and file of each slice from `start` to before `stop` that is there, z counted from `start`."""
        found = zip(self.places, self.files, strict=True)
        return [(place - start, file) for place, file in found if start <= place < stop]


def slice_files(folder: Path, suffixes: tuple[str, ...] = TIFF_SUFFIXES, *, allow_missing: bool = False) -> SliceFiles:
    """The TIFF files in a folder, or those of other suffixes, slice 2 before slice 10.

    The slice number is the first number in the names that counts up without a gap; other numbers may change as they like.
    Where none does, it is the one that is never the same and spans the fewest numbers, and slices are missing.

    Parameters
    ----------
    allow_missing
        Whether slices may be missing, as long as there are more than that.

    Raises
    ------
    VolumeError
        If there is no such file, a slice is missing or there twice, or the names do not say which slice is which.
    """
    files = _files(folder, suffixes)
    columns = list(zip(*([int(number) for number in re.findall("[0-9]+", file.stem)] for file in files), strict=True))
    counting = [column for column in columns if sorted(column) == list(range(min(column), min(column) + len(column)))]
    if counting or len(files) == 1:
        ordered = [file for _, file in sorted(zip(counting[0], files, strict=True))] if counting else files
        return SliceFiles(tuple(ordered), tuple(range(len(ordered))))
    return _with_gaps(folder, files, _numbers(folder, files, columns), allow_missing)


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers as a person writes them, the first few ranges of them.

    Examples
    --------
    >>> spans([3, 5, 6, 7, 12])
    '3, 5 to 7, 12'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    said = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:LISTED]]
    return ", ".join(said) + (", ..." if len(ranges) > LISTED else "")


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of slices, whose names differ by numbers alone."""
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
        files = [path for path in files if path.is_file()]
    except OSError as error:
        raise VolumeError(f"the folder {folder} cannot be read ({reason(error)}): check its permissions") from error
    if not files:
        raise VolumeError(f"the folder {folder} holds no file {' or '.join(suffixes)}: name a folder of slices")
    if odd := [file.name for file in files if not file.name.isprintable()]:
        raise VolumeError(f"the folder {folder} holds a file {odd[0]!r}, whose name does not print: rename it")
    files.sort()
    patterns: dict[str, Path] = {}
    for file in files:
        patterns.setdefault(re.sub("[0-9]+", "#", file.stem), file)
    if len(patterns) > 1:
        one, other = list(patterns.values())[:2]
        raise VolumeError(
            f"the names {one.name} and {other.name} in {folder} differ by more than a number: keep one kind there"
        )
    return files


def _numbers(folder: Path, files: list[Path], columns: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The number of each file's slice, where none counts without a gap."""
    distinct = [column for column in columns if len(set(column)) == len(column)]
    if distinct:
        return min(distinct, key=lambda numbers: max(numbers) - min(numbers))
    for column in columns:
        if len(set(column)) > 1 or len(columns) == 1:
            seen: dict[int, Path] = {}
            for number, file in zip(column, files, strict=True):
                if number in seen:
                    raise VolumeError(
                        f"{seen[number].name} and {file.name} in {folder} both have slice number {number}: keep one of them"
                    )
                seen[number] = file
    raise VolumeError(f"the names of the {len(files)} files in {folder} have no number that counts slices: number them")


def _with_gaps(folder: Path, files: list[Path], numbers: tuple[int, ...], allow_missing: bool) -> SliceFiles:
    """Slices some of which are missing, unless that is too many."""
    first, last = min(numbers), max(numbers)
    numbered = dict(sorted(zip(numbers, files, strict=True)))
    absent = last - first + 1 - len(files)
    few = allow_missing and absent < len(files)
    missing = list(islice((number for number in range(first, last) if number not in numbered), None if few else 10_000))
    if few:
        places = tuple(number - first for number in numbered)
        return SliceFiles(tuple(numbered.values()), places, tuple(number - first for number in missing))
    before, after = max(n for n in numbers if n < missing[0]), min(n for n in numbers if n > missing[-1])
    what = f"slice {missing[0]} is" if absent == 1 else f"slices {spans(missing)} are"
    where = f"{what} missing in {folder} between {numbered[before].name} and {numbered[after].name}"
    if allow_missing:
        raise VolumeError(f"{where}, {absent} slices beside {len(files)} that are there: number the files by slice")
    raise VolumeError(f"{where}: add what is missing, number the files without a gap, or fill gaps with 0 by --allow-missing")
