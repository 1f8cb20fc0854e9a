"""Kill a command before each change that it makes on disk, then run the same command again.

    python tests/crash_points.py COMMAND FOLDER MOMENTS SEED

Each attempt is a process forked from this one, which has imported everything and started no thread. It dies, as by SIGKILL,
right before its n-th change: a file is opened for writing, renamed or removed, or a folder is created or removed. A second
process then runs the command to its end. MOMENTS changes are drawn at random from SEED; 0 tries all. Each difference from an
undisturbed run is printed on a line.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile
from runs import PLANAR, save_random_model, save_volume, snapshot, texture

import emseg.flows.export
import emseg.flows.label
import emseg.flows.segment  # noqa: F401
from emseg import export, ingest, label, segment
from emseg_core.errors import OutputError
from emseg_core.store.files.ownership import IDENTITY

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}
"""Python's audit events of changes, besides that of an opened file."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SHAPE = (4, 300, 40)
"""A shape with many blocks and a coarser level."""
SIZE = (30.0, 8.0, 8.0)


@dataclass(frozen=True)
class Command:
    """A command that a user runs."""

    name: str
    """The name of what the command makes."""
    before: Callable[[Path], Any] | None
    """What the user has done there before; called with the path."""
    act: Callable[[Path], Any]
    """The command; called with a path in a separate folder beside the inputs."""
    again: Callable[[Path], Any] | None = None
    """What the user does after a crash; None for the same command."""
    once: bool = False
    """Whether the command is refused if everything is done."""


def exported(place: Path, file_format: Any, **settings: Any) -> None:
    """Export the output in this folder."""
    export(place.parents[1] / "labelled.zarr", place, file_format=file_format, workers=0, **settings)


def labelled(place: Path) -> None:
    """Label an output."""
    shutil.copytree(place.parents[1] / "labelled.zarr", place)


def run_again(place: Path) -> None:
    """Resume the run of the second model, or start it if the first model's output is still there."""
    try:
        segmented(place, "other")
    except OutputError:
        segmented(place, "other", overwrite=True)


def segmented(place: Path, model: str = "model", **settings: Any) -> None:
    """Segment a volume."""
    inputs = place.parents[1]
    asked = {"model": inputs / f"{model}.safetensors", "probabilities": True, "workers": 0, **settings}
    assert segment(inputs / "volume.zarr", place, **asked).exit_code == 0


def ingested(place: Path, **settings: Any) -> None:
    """Ingest a volume."""
    ingest(place.parents[1] / "stack.tif", place, voxel_size=SIZE, workers=0, **settings)


COMMANDS = {
    "run": Command("out.zarr", None, segmented),
    "run --overwrite": Command("out.zarr", labelled, lambda place: segmented(place, "other", overwrite=True), run_again),
    "label": Command("out.zarr", segmented, lambda place: label(place, workers=0)),
    "label --overwrite": Command("out.zarr", labelled, lambda place: label(place, workers=0, overwrite=True)),
    "ingest": Command("in.zarr", None, ingested, once=True),
    "ingest --overwrite": Command("in.zarr", ingested, lambda place: ingested(place, overwrite=True)),
    "export 0.4": Command("out.zarr", None, lambda place: exported(place, "ome-zarr-0.4"), once=True),
    "export 0.5 --overwrite": Command(
        "out.zarr",
        lambda place: exported(place, "ome-zarr-0.5", instances="instances"),
        lambda place: exported(place, "ome-zarr-0.5", overwrite=True),
    ),
    "export precomputed": Command("out", None, lambda place: exported(place, "precomputed"), once=True),
    "export tiff": Command("out.tif", None, lambda place: exported(place, "tiff"), once=True),
    "export tiff --overwrite": Command(
        "out.tif",
        lambda place: exported(place, "tiff", probability="membrane"),
        lambda place: exported(place, "tiff", overwrite=True),
    ),
}


def main(command: Command, folder: Path, moments: int, seed: int) -> None:
    """Print the number of changes, and the differences after a crash at some of them."""
    place, before = folder / "made" / command.name, folder / "before"
    in_a_fork(lambda: make_inputs(folder))
    before.mkdir()
    if command.before is not None:
        in_a_fork(lambda: command.before(before / command.name))  # type: ignore[misc]

    def anew() -> None:
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(before, place.parent)

    anew()
    changes = in_a_fork(lambda: command.act(place), counted=place.parent)
    undisturbed = left_in(place.parent)
    print(changes, flush=True)
    chosen = list(range(1, changes + 1))
    if moments:
        chosen = sorted(random.Random(seed).sample(chosen, min(moments, changes)))
    for moment in chosen:
        anew()
        died = in_a_fork(lambda: command.act(place), counted=place.parent, dies_at=moment)
        try:
            if not (command.once and place.exists()):
                in_a_fork(lambda: (command.again or command.act)(place))
        except AssertionError:
            print(f"moment {moment} of {changes} ({died}): the same command fails", flush=True)
        found = left_in(place.parent)
        for name in sorted({*found, *undisturbed}):
            if found.get(name) != undisturbed.get(name):
                print(f"moment {moment} of {changes} ({died}): {name} differs", flush=True)


def make_inputs(folder: Path) -> None:
    """Make a volume, as Zarr and as TIFF, two models, and an output with instance labels."""
    for number, model in enumerate(("model", "other")):
        save_random_model(folder / f"{model}.safetensors", PLANAR, number)
    save_volume(folder / "volume.zarr", texture(SHAPE))
    tifffile.imwrite(folder / "stack.tif", texture(SHAPE), photometric="minisblack")
    (folder / "made").mkdir()
    segmented(folder / "made" / "first.zarr")
    (folder / "made" / "first.zarr").rename(folder / "labelled.zarr")
    label(folder / "labelled.zarr", workers=0, threshold=0.7)


def left_in(folder: Path) -> dict[str, str]:
    """Return all files except run records, the owner's identity, and a lease folder with nothing else in it.

    A process that dies with everything in place, but before it removes its lease, leaves that folder behind. The next process
    removes it.
    """
    own = ("emseg/run-", IDENTITY)
    found = {name: what for name, what in snapshot(folder).items() if not any(o in name for o in own)}
    leases = {
        lease
        for lease in (path.name for path in folder.glob(".emseg-*"))
        if not any(name.startswith(f"{lease}/") and name != f"{lease}/emseg" for name in found)
    }
    return {name: what for name, what in found.items() if name.partition("/")[0] not in leases}


def by_name(path: str) -> str:
    """Return a path through an open folder, with the folder's name in place of its descriptor."""
    found = re.match(r"/proc/self/fd/\d+", path)
    return path if found is None else str(Path(found[0]).readlink()) + path[found.end() :]


def in_a_fork(act: Callable[[], Any], counted: Path | None = None, dies_at: int = 0) -> Any:
    """Run a function in a fork. Return the number of changes below a folder, or the change before which it died."""
    readable, writable = os.pipe()
    process = os.fork()
    if process == 0:
        changes = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            if threading.current_thread().name == "emseg-lease":  # a busy machine renews leases more often
                return
            opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
            if (event in CHANGES or opened) and by_name(str(arguments[0])).startswith(str(counted)):
                changes += 1
                if changes == dies_at:
                    os.write(writable, f"{event} {by_name(str(arguments[0]))}".encode())
                    os._exit(9)

        if counted is not None:
            sys.addaudithook(watch)
        try:
            act()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os.write(writable, str(changes).encode())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.close(writable)
    with os.fdopen(readable) as pipe:
        told = pipe.read()
    assert code == (9 if dies_at else 0), f"ended with {code}"
    return told if dies_at else int(told)


if __name__ == "__main__":
    main(COMMANDS[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
