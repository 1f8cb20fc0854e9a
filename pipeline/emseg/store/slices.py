"""The files of a folder of slices, in the order that the numbers in their names say."""

from __future__ import annotations

import re
from pathlib import Path

from emseg.errors import VolumeError
from emseg.store.nodes import TIFF_SUFFIXES, reason


def slice_files(folder: Path, suffixes: tuple[str, ...] = TIFF_SUFFIXES) -> list[Path]:
    """The TIFF files in a folder, or those of other suffixes, slice 2 before slice 10.

    The slice number is the first number in the names that counts up without a gap; other numbers may change as they like.

    Raises
    ------
    VolumeError
        If there is no such file, a slice is missing or there twice, or the names do not say which slice is which.
    """
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
    columns = list(zip(*([int(number) for number in re.findall("[0-9]+", file.stem)] for file in files), strict=True))
    counting = [column for column in columns if sorted(column) == list(range(min(column), min(column) + len(column)))]
    if counting:
        return [file for _, file in sorted(zip(counting[0], files, strict=True))]
    if len(files) == 1:
        return files
    raise _uncounted(folder, files, columns)


def _uncounted(folder: Path, files: list[Path], columns: list[tuple[int, ...]]) -> VolumeError:
    """Why no number in the names counts the slices."""
    distinct = [column for column in columns if len(set(column)) == len(column)]
    if not distinct:
        for column in columns:
            if len(set(column)) > 1 or len(columns) == 1:
                seen: dict[int, Path] = {}
                for number, file in zip(column, files, strict=True):
                    if number in seen:
                        return VolumeError(
                            f"{seen[number].name} and {file.name} in {folder} both have slice number {number}: keep one of them"
                        )
                    seen[number] = file
        return VolumeError(f"the names of the {len(files)} files in {folder} have no number that counts slices: number them")
    column = min(distinct, key=lambda numbers: max(numbers) - min(numbers))
    numbered = dict(zip(column, files, strict=True))
    missing = next(number for number in range(min(column), max(column)) if number not in numbered)
    before, after = max(n for n in column if n < missing), min(n for n in column if n > missing)
    return VolumeError(
        f"slice {missing} is missing in {folder} between {numbered[before].name} and {numbered[after].name}: "
        "add it, or number the files without a gap"
    )
