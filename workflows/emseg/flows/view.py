"""`emseg view`: show an output in a browser, over its volume."""

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

from emseg.flows.records.completeness import CLASSES, find_flaws
from emseg.flows.records.run_log import recipe_of, volume_of
from emseg.pages.pictures import contrast_range
from emseg.viewing.server import LOOPBACK, ViewServer
from emseg.viewing.state import Contrast, HeadSource, Sources, class_names, fragment, viewer_state
from emseg_core.box import Box, triple
from emseg_core.errors import BlockError, InputError, OutputError
from emseg_core.store.files.extras import load_extra
from emseg_core.store.files.place import Place
from emseg_core.store.outputs.instances import descriptions
from emseg_core.store.outputs.layout import Generation
from emseg_core.store.outputs.lifecycle import open_output
from emseg_core.store.outputs.output import Output
from emseg_core.store.volumes.shown import ShownImage, shown_image
from emseg_core.store.volumes.volume import ZarrVolume

SAMPLE_RADIUS_VOXELS = 512
"""Voxels to each side of the middle that are read to find the range of grey values."""


@dataclass(frozen=True, slots=True)
class View:
    """An output that is served until it is closed or the ``with`` ends."""

    url: str
    """The address that shows it; only a path if it is behind a JupyterHub that does not state its own address."""
    link: str
    """The long address, which spells out what is shown and from where."""
    notes: tuple[str, ...]
    """What is not shown, and why."""
    server: ViewServer

    @property
    def tunnel(self) -> str:
        """Command line of an SSH tunnel that shows it on another machine, where it may begin at another port."""
        ports = f"{self.server.port}:{LOOPBACK}:{self.server.port}"
        return shlex.join(["ssh", "-N", "-L", ports, socket.gethostname()])

    def open_browser(self) -> bool:
        """Open a browser on this machine.

        Returns
        -------
        bool
            Whether this machine has a screen and a browser.
        """
        if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
            return False  # without a screen, only text browsers are found
        try:
            return webbrowser.open(self.server.ticket())
        except webbrowser.Error:
            return False

    def wait(self) -> None:
        """Serve until a signal arrives."""
        self.server.wait()

    def close(self) -> None:
        """Stop serving."""
        self.server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def view(output: str | Place, *, volume: str | Place | None = None, port: int = 0, public_url: str | None = None) -> View:
    """Serve an output to browsers on this machine that know its address.

    This process reads nothing into memory: the browser reads the chunks that it shows, at the level that it shows.

    Parameters
    ----------
    output
        The output of a run, finished or in progress.
    volume
        New path of the volume, if it was moved since the run.
    port
        Port to serve at; 0 for any free one.
    public_url
        Address at which a proxy shows the port, which ``{port}`` stands for. Default: JupyterHub's, if this process is under
        one.

    Returns
    -------
    View
        The served output, with its address.

    Raises
    ------
    InputError
        If the output or the given volume does not exist, the port is in use, ``public_url`` is not an address, or Neuroglancer
        is not installed.
    """
    stored = open_output(output)
    spec, flaws = recipe_of(stored).volume, find_flaws(stored)
    if fatal := [flaw for flaw in flaws if flaw.image == CLASSES]:
        raise OutputError(f"{stored.path} is damaged: {fatal[0]}")
    notes = [str(flaw) for flaw in flaws]
    names = tuple(name for name in descriptions(stored.files) if not any(flaw.hides(name) for flaw in flaws))
    client = Path(load_extra("neuroglancer", "view", stored.path, "shown").__file__).parent / "static" / "client"
    images = _images(stored, names)
    notes += [f"{image.name} is not shown: the viewer shows no float16" for image in stored.images if image.dtype == "float16"]
    contrast = None
    try:
        source = volume_of(stored, volume).first
        images["raw"], contrast = shown_image(source.path), _contrast(source, stored.region)
    except InputError as error:
        if volume is not None:
            raise
        notes.append(f"the volume is not shown: {error}")

    server = ViewServer(client, port, public_url)
    try:
        sources = _sources(server, stored, images, names)
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
    """Return the images in an output, by the names under which they are served."""
    generation, levels = Generation(stored.generation), _built_levels(stored)
    shown = (image for image in stored.images[::-1] if image.dtype != "float16")  # which Neuroglancer does not show
    images = {image.name: shown_image(stored.path / generation.path(image), levels) for image in shown}
    for number, name in enumerate(instances):
        images[f"instances-{number}"] = shown_image(stored.path / f"labels/{name}")
    return images


def _sources(server: ViewServer, stored: Output, images: Mapping[str, ShownImage], instances: tuple[str, ...]) -> Sources:
    """Return the address at which the viewer finds each image."""
    others = [image for image in stored.images if image.head.kind != "classes" and image.name in images]
    found = {name: f"{server.data(name)}|zarr{image.zarr_format}:" for name, image in images.items()}
    return Sources(
        classes=found.get("classes"),
        names=f"precomputed://{server.data('names')}",
        raw=found.get("raw"),
        probabilities=found.get("probabilities"),
        instances={name: found[f"instances-{number}"] for number, name in enumerate(instances)},
        heads={image.name: HeadSource(found[image.name], image.names if image.channels else ()) for image in others},
    )


def _built_levels(stored: Output) -> int:
    """Count the levels that are up to date with the next finer one: the others would look as if nothing was computed."""
    finer = stored.done_units()
    for number, level in enumerate(stored.levels[1:], 1):
        done = level.done()
        if (level.ready(finer) & ~done).any():
            return number
        finer = done
    return len(stored.levels)


def _contrast(source: ZarrVolume, region: Box) -> Contrast | None:
    """Return a dark and a bright grey value in the middle of a region; None if all values there are the same or unreadable."""
    start = triple((first + stop - 1) // 2 for first, stop in zip(region.start, region.stop, strict=True))
    middle = Box(start, triple(place + 1 for place in start))
    try:
        low, high = contrast_range(source.read(middle.grow((0, SAMPLE_RADIUS_VOXELS, SAMPLE_RADIUS_VOXELS)).intersect(region)))
    except BlockError:  # a damaged chunk; the others are still shown
        return None
    return (low, high) if low < high else None
