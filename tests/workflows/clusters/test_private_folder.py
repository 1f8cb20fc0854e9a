"""Test that a run keeps temporary files in its own folder, and removes those of killed runs but nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Worker
from mounts import with_mount
from runs import save_volume, snapshot, texture

from emseg.clusters import private_folder as module
from emseg.clusters.local import local_cluster
from emseg.clusters.private_folder import private_folder
from emseg_core.errors import InputError

OTHER = 65534
"""Another user."""
HOLDER = """
import sys
from pathlib import Path
from emseg.clusters.private_folder import private_folder
with private_folder(Path(sys.argv[1])) as folder:
    (folder / "work").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def lookalike(parent: Path) -> Path:
    """Make a folder with a file, named like that of a run."""
    path = parent / f"{module._prefix()}0123456789abcdef"
    path.mkdir(mode=0o700)
    (path / "notes").touch()
    return path


def test_nobody_else_enters_it_and_nothing_is_left(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with private_folder(tmp_path / "made") as folder:
            about = folder.stat()
            (folder / "notes").touch()
    finally:
        os.umask(before)
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o700, os.geteuid())
    assert snapshot(tmp_path) == {"made": "folder"}


def test_that_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        its = Path(holder.stdout.readline().rstrip())
        with private_folder(tmp_path):
            assert (its / "work").is_dir()
        holder.kill()
        holder.wait()
    assert (its / "work").is_dir()
    with private_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]


def test_one_without_a_holder_is_removed(tmp_path: Path) -> None:
    """Otherwise the following tests could not fail."""
    lookalike(tmp_path)
    with private_folder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]


@pytest.mark.parametrize("mode", [0o701, 0o740, 0o770, 0o1777])
def test_one_that_others_may_enter_or_write_to_is_left_alone(tmp_path: Path, mode: int) -> None:
    lookalike(tmp_path).chmod(mode)
    assert_untouched(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_that_of_another_user_is_left_alone(tmp_path: Path) -> None:
    os.chown(lookalike(tmp_path), OTHER, OTHER)
    assert_untouched(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The target of the link does not matter."""
    theirs = tmp_path / "data"
    lookalike(tmp_path).rename(theirs)
    (tmp_path / f"{module._prefix()}0123456789abcdef").symlink_to(theirs)
    assert_untouched(tmp_path)


@pytest.mark.parametrize("name", ["emseg-scratch-{host}x-0123456789abcdef", "emseg-scratch-{host}-data", "emseg-{host}-01"])
def test_what_has_another_name_is_left_alone(tmp_path: Path, name: str) -> None:
    """This includes folders of other hosts, whose locks may be invisible here."""
    lookalike(tmp_path).rename(tmp_path / name.format(host=socket.gethostname()))
    assert_untouched(tmp_path)


def assert_untouched(parent: Path) -> None:
    before = snapshot(parent)
    with private_folder(parent):
        pass
    assert snapshot(parent) == before


def test_many_begin_at_once(tmp_path: Path) -> None:
    """None treats the folder of another as abandoned while it is being created."""

    def begin(_: int) -> bool:
        with private_folder(tmp_path) as folder:
            (folder / "work").mkdir()
            return folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(begin, range(200)))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_another_run_is_about_to_remove_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That run takes the new folder for abandoned, and has its lock already."""
    opened, removers = module._opened, list[int]()

    def overtaken(path: Path) -> int:
        if not removers:
            removers.append(opened(path))
            fcntl.flock(removers[0], fcntl.LOCK_EX)
        return opened(path)

    monkeypatch.setattr(module, "_opened", overtaken)
    with private_folder(tmp_path) as folder:
        first = next(path for path in tmp_path.iterdir() if path.stat().st_ino == os.fstat(removers[0]).st_ino)
        assert folder != first
    os.close(removers[0])


def test_no_place_for_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"no private folder can be made in .*file on .* \(File exists\): choose another"):
        private_folder(tmp_path / "file").__enter__()


@pytest.mark.parametrize(("options", "why"), [("size=8k", "No space left on device"), ("ro", "Read-only file system")])
def test_a_node_without_room_for_it_says_so_in_the_workers_log(options: str, why: str, tmp_path: Path) -> None:
    ran = with_mount(options, tmp_path, "emseg.clusters.worker", "tls://127.0.0.1:9", "--local-directory", tmp_path)
    assert ran.returncode == 1
    assert ran.stderr == (
        f"error: no private folder can be made in {tmp_path} on {socket.gethostname()} ({why}): choose another folder with "
        "TMPDIR, or with scratch in the site file\n"
    )


def test_a_folder_on_a_full_disk_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device"), private_folder(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


def test_file_systems_without_programs_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is started from there."""
    (tmp_path / "v").mkdir()
    volume = save_volume(tmp_path / "v" / "v.zarr", texture((3, 40, 40)))
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    ran = with_mount("noexec", tmp_path / "t", "emseg", "run", volume, "--workers", 2)
    assert ran.returncode == 0, ran.stderr


def test_all_of_a_cluster_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Dask folder that another user has created is not used."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = tmp_path / "dask-scratch-space"
    shared.mkdir()
    shared.chmod(0o777)

    def worker_folder(dask_worker: Worker) -> str:
        return dask_worker.local_directory

    with local_cluster(1, 1) as client:
        (mine,) = tmp_path.glob("emseg-*")
        cluster = client.cluster
        assert cluster is not None
        used = [*client.run(worker_folder).values(), *client.run(worker_folder, nanny=True).values()]
        used += [cluster.scheduler.local_directory, client.security.tls_worker_key, client.security.tls_ca_file]
        assert len(used) == 5
        assert {Path(path).relative_to(mine).parts[0] for path in used} == {"dask-scratch-space", "tls"}
        assert not any("dask-scratch-space" in path and not Path(path).is_relative_to(mine) for path in sys.path)
    assert snapshot(tmp_path) == {"dask-scratch-space": "folder"}
    assert not any(re.search("dask-scratch-space", path) for path in sys.path)
