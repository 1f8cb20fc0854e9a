"""Sort the files of a folder of slices by the slice numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from emseg_core.errors import VolumeError
from emseg_core.store.files.faults import translate_damage
from emseg_core.store.zarrs.nodes import TIFF_SUFFIXES

MAX_LISTED = 8
"""Most ranges of numbers that an error message lists."""


@dataclass(frozen=True, slots=True)
class SliceFiles:
    """Files of the slices in a folder, in slice order."""

    files: tuple[Path, ...]
    """Files that exist."""
    places: tuple[int, ...]
    """z of each file, counted from 0."""
    missing: tuple[int, ...] = ()
    """z of each slice between the first and the last that has no file."""

    @property
    def depth(self) -> int:
        """Number of slices, including missing ones."""
        return len(self.files) + len(self.missing)

    def within(self, start: int, stop: int) -> list[tuple[int, Path]]:
        """Return the files of the slices from `start` to before `stop`.

        Parameters
        ----------
        start, stop
            First slice, and the one after the last.

        Returns
        -------
        list of tuple
            z, counted from `start`, and path of each slice that exists.
        """
        found = zip(self.places, self.files, strict=True)
        return [(place - start, file) for place, file in found if start <= place < stop]


def slice_files(folder: Path, suffixes: tuple[str, ...] = TIFF_SUFFIXES, *, allow_missing: bool = False) -> SliceFiles:
    """Find the slices in a folder and sort them by number: slice 2 comes before slice 10.

    The slice number is the first number in the file names that counts up without a gap; other numbers may change arbitrarily.
    If there is none, it is the number that is unique to each file and spans the smallest range, and slices are missing.

    Parameters
    ----------
    folder
        Folder of slices.
    suffixes
        Suffixes of the file names, in lower case.
    allow_missing
        Whether slices may be missing, as long as more exist than are missing.

    Returns
    -------
    SliceFiles
        Files in slice order.

    Raises
    ------
    VolumeError
        If there are no such files, a slice is missing or exists twice, or the names do not determine the order.
    """
    files = _files(folder, suffixes)
    numbers = [[int(number) for number in re.findall("[0-9]+", file.stem)] for file in files]
    columns = list(zip(*numbers, strict=True))
    counting = [column for column in columns if sorted(column) == list(range(min(column), min(column) + len(column)))]
    if counting or len(files) == 1:
        ordered = [file for _, file in sorted(zip(counting[0], files, strict=True))] if counting else files
        return SliceFiles(tuple(ordered), tuple(range(len(ordered))))
    return _with_gaps(folder, files, _numbers(folder, files, columns), allow_missing)


def spans(numbers: Sequence[int]) -> str:
    """Format ascending numbers as ranges, up to `MAX_LISTED` of them.

    Parameters
    ----------
    numbers
        Numbers in ascending order.

    Returns
    -------
    str
        Ranges, separated by commas.

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
    said = [str(first) if first == last else f"{first} to {last}" for first, last in ranges[:MAX_LISTED]]
    return ", ".join(said) + (", ..." if len(ranges) > MAX_LISTED else "")


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """List the files of slices, whose names may differ in numbers only."""
    with translate_damage(f"the folder {folder} cannot be read", "check its permissions"):
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and not path.name.startswith(".")]
        files = [path for path in files if path.is_file()]
    if not files:
        raise VolumeError(f"the folder {folder} contains no file {' or '.join(suffixes)}: give a folder of slices")
    if odd := [file.name for file in files if not file.name.isprintable()]:
        raise VolumeError(f"the folder {folder} contains a file {odd[0]!r}, whose name is not printable: rename it")
    files.sort()
    patterns: dict[str, Path] = {}
    for file in files:
        patterns.setdefault(re.sub("[0-9]+", "#", file.stem), file)
    if len(patterns) > 1:
        one, other = list(patterns.values())[:2]
        raise VolumeError(
            f"the names {one.name} and {other.name} in {folder} differ in more than a number: keep only one series"
        )
    return files


def _numbers(folder: Path, files: list[Path], columns: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the slice number of each file, if no number counts without a gap."""
    distinct = [column for column in columns if len(set(column)) == len(column)]
    if distinct:
        return min(distinct, key=lambda numbers: max(numbers) - min(numbers))
    for column in columns:
        if len(set(column)) > 1 or len(columns) == 1:
            seen: dict[int, Path] = {}
            for number, file in zip(column, files, strict=True):
                if number in seen:
                    raise VolumeError(
                        f"{seen[number].name} and {file.name} in {folder} both have slice number {number}: keep only one"
                    )
                seen[number] = file
    raise VolumeError(f"the names of the {len(files)} files in {folder} contain no slice number: number the files")


def _with_gaps(folder: Path, files: list[Path], numbers: tuple[int, ...], allow_missing: bool) -> SliceFiles:
    """Return slices with gaps. Raise a `VolumeError` if too many are missing."""
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
        raise VolumeError(f"{where}, {absent} missing of {absent + len(files)}: number the files by slice")
    raise VolumeError(f"{where}: add the missing files, number the files without gaps, or fill gaps with 0 by --allow-missing")
