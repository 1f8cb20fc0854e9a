"""`emseg view`: an output in a browser, over the volume that it was made from."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from emseg.box import Box, triple
from emseg.errors import BlockError, InputError, OutputError
from emseg.store.extras import load_extra
from emseg.store.instances import descriptions
from emseg.store.ledger import Output
from emseg.store.output import Generation, open_output
from emseg.store.place import Place
from emseg.store.shown import ShownImage, shown_image
from emseg.store.volume import ZarrVolume
from emseg_workflows.flows.record import recipe_of, volume_of
from emseg_workflows.flows.whole import CLASSES, flaws_of
from emseg_workflows.pictures import contrast_range
from emseg_workflows.viewing.server import LOOPBACK, ViewServer
from emseg_workflows.viewing.state import Contrast, Sources, class_names, fragment, viewer_state

SAMPLED = 512
"""Voxels to each side of the middle that tell which grey values there are."""


@dataclass(frozen=True, slots=True)
class View:
    """An output that is being served, until it is closed or the ``with`` ends."""

    url: str
    """The address that shows it."""
    link: str
    """The same with all that is shown, and from where, written out."""
    notes: tuple[str, ...]
    """What is not shown, and why."""
    server: ViewServer

    @property
    def tunnel(self) -> str:
        """The command line that brings it to the same address of the machine you sit at."""
        ports = f"{self.server.port}:{LOOPBACK}:{self.server.port}"
        return shlex.join(["ssh", "-N", "-L", ports, socket.gethostname()])

    def open_browser(self) -> bool:
        """Whether a browser was found that shows it, on a screen of this machine."""
        if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
            return False  # what is found then are browsers of the terminal
        try:
            return webbrowser.open(self.server.ticket())
        except webbrowser.Error:
            return False

    def wait(self) -> None:
        """Serve until a signal ends it."""
        self.server.wait()

    def close(self) -> None:
        """Serve no longer."""
        self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def view(output: str | Place, *, volume: str | Place | None = None, port: int = 0) -> View:
    """An output that is served from now on to browsers of this machine, and only to those who know the address.

    Nothing is read into memory here: the browser reads the chunks that it shows, of the level that it shows.

    Parameters
    ----------
    output
        What a run has written; it may still be going on.
    volume
        Where the volume is, if not where the run found it.
    port
        The port to serve at; 0 is any that is free.

    Raises
    ------
    InputError
        If the output or the volume given is not there, the port is taken, or Neuroglancer is not installed.
    """
    stored = open_output(output)
    spec, flaws = recipe_of(stored).volume, flaws_of(stored)
    if barring := [flaw for flaw in flaws if flaw.image == CLASSES]:
        raise OutputError(f"{stored.path} is damaged: {barring[0]}")
    notes = [str(flaw) for flaw in flaws]
    names = tuple(name for name in descriptions(stored.files) if not any(flaw.bars(name) for flaw in flaws))
    client = Path(load_extra("neuroglancer", "view", stored.path, "shown").__file__).parent / "static" / "client"
    images = _images(stored, names)
    contrast = None
    try:
        source = volume_of(stored, volume)
        images["raw"], contrast = shown_image(source.path), _contrast(source, stored.region)
    except InputError as error:
        if volume is not None:
            raise
        notes.append(f"without the volume: {error}")

    server = ViewServer(client, port)
    try:
        sources = _sources(server, images, names)
        shown = fragment(viewer_state(spec, stored.region, stored.classes, sources, contrast))
        places = {f"{name}/{level}": path for name, image in images.items() for level, path in enumerate(image.arrays)}
        files = {f"{name}/{file}": content for name, image in images.items() for file, content in image.metadata.items()}
        files["names/info"] = json.dumps(class_names(stored.classes)).encode()
        server.start(shown, places, files)
    except BaseException:
        server.stop()
        raise
    return View(server.url, server.viewer(shown), tuple(notes), server)


def _images(stored: Output, instances: tuple[str, ...]) -> dict[str, ShownImage]:
    """The images in an output, by the name that they are served with."""
    generation, levels = Generation(stored.generation), _built_levels(stored)
    images = {"classes": shown_image(stored.path / generation.labels, levels)}
    if stored.keeps_probabilities:
        images["probabilities"] = shown_image(stored.path / generation.probabilities, levels)
    for number, name in enumerate(instances):
        images[f"instances-{number}"] = shown_image(stored.path / f"labels/{name}")
    return images


def _sources(server: ViewServer, images: Mapping[str, ShownImage], instances: tuple[str, ...]) -> Sources:
    """Where the viewer finds each of the images."""
    found = {name: f"{server.data(name)}|zarr{image.zarr_format}:" for name, image in images.items()}
    return Sources(
        classes=found["classes"],
        names=f"precomputed://{server.data('names')}",
        raw=found.get("raw"),
        probabilities=found.get("probabilities"),
        instances={name: found[f"instances-{number}"] for number, name in enumerate(instances)},
    )


def _built_levels(stored: Output) -> int:
    """How many levels have all that can be made of the next finer one: the others would look as if nothing was computed."""
    finer = stored.done_units()
    for number, level in enumerate(stored.levels[1:], 1):
        done = level.done()
        if (level.ready(finer) & ~done).any():
            return number
        finer = done
    return len(stored.levels)


def _contrast(source: ZarrVolume, region: Box) -> Contrast | None:
    """The darkest and the brightest value in the middle of a region, but for a few; None if nothing tells them apart there."""
    start = triple((first + stop - 1) // 2 for first, stop in zip(region.start, region.stop, strict=True))
    middle = Box(start, triple(place + 1 for place in start))
    try:
        low, high = contrast_range(source.read(middle.grow((0, SAMPLED, SAMPLED)).intersect(region)))
    except BlockError:  # of one damaged chunk; the others are shown
        return None
    return (low, high) if low < high else None
