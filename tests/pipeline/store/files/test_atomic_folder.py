"""Test folders built beside their final path: by one process at a time, whole or not at all, with nothing left over."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from emseg_core.errors import OrphanError, OutputError
from emseg_core.store.files.atomic_folder import atomic_folder
from emseg_core.store.files.lease import Holder


def make(path: Path, text: str, *, replace: bool = False, then: Callable[[Path], object] = lambda _: None) -> None:
    """Make a folder with a file, and call a function while it is being made."""
    with atomic_folder(path, replace=replace) as work:
        work.mkdir()
        (work / "file").write_text(text)
        then(work)


def kill(work: Path) -> None:
    raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_it_is_there_whole_and_nothing_else(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as work:
        work.mkdir()
        assert not (tmp_path / "made").exists()
        assert work.parent.parent == tmp_path  # a rename is enough
    assert names(tmp_path) == ["made"]
    make(tmp_path / "made", "new", replace=True)
    assert (tmp_path / "made" / "file").read_text() == "new"
    with atomic_folder(tmp_path / "made.tif", replace=True) as work:
        work.write_text("a file")
    assert names(tmp_path) == ["made", "made.tif"]


def test_nothing_is_there_if_it_fails(tmp_path: Path) -> None:
    make(tmp_path / "made", "old")
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "made", "new", replace=True, then=kill)
    with pytest.raises(OutputError, match="already exists"):
        make(tmp_path / "made", "new")
    with pytest.raises(OutputError, match="cannot be written"):
        make(tmp_path / "other", "new", then=lambda work: work.rmdir())  # it is not empty
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "old"


def test_a_file_takes_the_place_of_no_folder(tmp_path: Path) -> None:
    make(tmp_path / "made", "old")
    with pytest.raises(OutputError, match="cannot be written"), atomic_folder(tmp_path / "made", replace=True) as work:
        work.write_text("a file")
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "old"


def test_who_came_in_between_keeps_the_name(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="created by another process"):
        make(tmp_path / "made", "new", then=lambda _: (tmp_path / "made").mkdir())
    assert names(tmp_path) == ["made"]


def test_another_one_that_lives_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "made") as work:
        work.mkdir()
        with pytest.raises(OutputError, match="is in use"):
            make(tmp_path / "made", "theirs")
        make(tmp_path / "other", "theirs")
    assert names(tmp_path) == ["made", "other"]


def test_what_a_dead_one_has_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If that process was not dead after all, it does no harm."""
    monkeypatch.setattr(Holder, "dead", lambda self, age: True)
    first, second = atomic_folder(tmp_path / "made"), atomic_folder(tmp_path / "made")
    (slow := first.__enter__()).mkdir()
    (work := second.__enter__()).mkdir()
    assert names(work.parent) == [work.name, "emseg"]
    with pytest.raises(OSError, match="No such file"):
        (slow / "file").write_text("slow")
    (work / "file").write_text("quick")
    with pytest.raises(OrphanError):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "quick"


def test_what_was_put_aside_is_put_back(tmp_path: Path) -> None:
    """The process was killed between the two renames. The next one starts with the previous content."""
    make(tmp_path / "made", "old")
    with atomic_folder(tmp_path / "made", replace=True) as work:
        work.mkdir()
        folder = work.parent
    make(tmp_path / "made", "old", replace=True)
    folder.mkdir()
    (tmp_path / "made").rename(folder / "old")
    with pytest.raises(OutputError, match="already exists"):
        make(tmp_path / "made", "new")
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_replacement_that_ends_half_way_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """A signal ends it, or a disk that refuses the second rename."""
    make(tmp_path / "made", "old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.startswith("1-"):  # where it is made
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((KeyboardInterrupt, OutputError)):
        make(tmp_path / "made", "new", replace=True)
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "old"


def test_what_cannot_be_put_back_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "made", "old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name != "made":
            raise OSError
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises((OSError, OutputError)):
            make(tmp_path / "made", "new", replace=True)
        (aside,) = tmp_path.glob(".emseg-*/old/file")
        assert aside.read_text() == "old"
    with pytest.raises(OutputError, match="already exists"):
        make(tmp_path / "made", "new")
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "old"


@pytest.mark.parametrize("most", range(0, 800, 40))
def test_a_full_disk_leaves_nothing(most: int, tmp_path: Path) -> None:
    """Any of the lease's files may be the first that does not fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(OutputError, match="made cannot be written"):
            make(tmp_path / "made", 1000 * "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
