"""Neuroglancer's viewer state, as plain dictionaries.

The axes are x, y, z, since Neuroglancer draws the first one from left to right and the second one downwards. Coordinates are in
voxels from the origin of the volume's space; a voxel extends half a voxel to either side of its centre.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from emseg.pages.colours import class_colours, hex_colour
from emseg_core.box import AXES, Box
from emseg_core.grid.stitch import NOT_COMPUTED, QUANTA
from emseg_core.specs.volume import NANOMETRES, VolumeSpec
from emseg_core.store.zarrs.omero import colour

Contrast = tuple[float, float]
"""Raw values that are drawn black and white."""

PANEL_PIXELS = 400
"""Smallest extent of the region in a panel."""
MAX_VOXELS_PER_PIXEL = 4.0
"""Largest initial number of voxels per pixel; beyond that, images without coarser levels would be loaded as a whole."""
OPACITY = 0.4


@dataclass(frozen=True, slots=True)
class HeadSource:
    """An image of a head that is more than classes."""

    address: str
    """Address of the Zarr group."""
    channels: tuple[str, ...]
    """Name of each channel; empty for labels."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Addresses of the images, each a Zarr group."""

    classes: str | None
    names: str
    """Address of the names of classes, in Neuroglancer's own format."""
    raw: str | None = None
    probabilities: str | None = None
    instances: Mapping[str, str] = field(default_factory=dict)
    """Addresses of instance labels, by their names."""
    heads: Mapping[str, HeadSource] = field(default_factory=dict)
    """Images of heads that are more than classes, by their names."""


def viewer_state(
    volume: VolumeSpec, region: Box, classes: tuple[str, ...], sources: Sources, contrast: Contrast | None
) -> dict[str, Any]:
    """Return a viewer state that shows all layers, centred on the middle of the region.

    Parameters
    ----------
    volume
        The volume, which defines axes, voxel size and units.
    region
        Region of the output, in the volume's coordinates.
    classes
        Name of each class.
    sources
        Addresses of the images.
    contrast
        Raw values to draw black and white; None lets the viewer choose.

    Returns
    -------
    dict
        JSON values.
    """
    rank = volume.rank
    sizes = volume.proportions
    extents = [length * size / min(sizes[-rank:]) for length, size in zip(region.shape, sizes, strict=True)][-rank:]
    return {
        "dimensions": _dimensions(volume),
        "position": _middle(volume, region),
        "crossSectionScale": min(max(extents[-2:]) / PANEL_PIXELS, MAX_VOXELS_PER_PIXEL),
        "projectionScale": max(extents),
        "layers": _layers(volume, classes, sources, contrast),
        **({"selectedLayer": {"layer": "classes", "visible": True}} if sources.classes else {}),
        "layout": "4panel" if region.shape[0] > 1 else "xy",
        "showDefaultAnnotations": False,
    }


def fragment(state: Mapping[str, Any]) -> str:
    """Encode a state for the viewer's address.

    Parameters
    ----------
    state
        State of the viewer, as JSON values.

    Returns
    -------
    str
        The part of the address after ``#!``.
    """
    return quote(json.dumps(state, separators=(",", ":")), safe=":,/'")


def class_names(classes: tuple[str, ...]) -> dict[str, Any]:
    """Return the names of the classes in Neuroglancer's format for properties of segments.

    Parameters
    ----------
    classes
        Name of each class.

    Returns
    -------
    dict
        Content of the file ``info``, as JSON values.
    """
    named = {**dict(enumerate(classes)), NOT_COMPUTED: "not computed"}
    labels = {"id": "label", "type": "label", "values": list(named.values())}
    inline = {"ids": [str(value) for value in named], "properties": [labels]}
    return {"@type": "neuroglancer_segment_properties", "inline": inline}


def _dimensions(volume: VolumeSpec) -> dict[str, list[Any]]:
    """Return voxel size and unit of each axis, x first; in metres if the unit is one of length."""
    found: dict[str, list[Any]] = {}
    for axis, size, unit in reversed(list(zip(AXES, volume.scale, volume.units, strict=True))[-volume.rank :]):
        metres = NANOMETRES.get(unit or "")
        found[axis] = [size, ""] if metres is None else [size * metres * 1e-9, "m"]
    return found if volume.timepoint is None else {**found, "t": [1, ""]}


def _middle(volume: VolumeSpec, region: Box) -> list[float]:
    """Return the centre of a region's middle voxel, x first, in voxels from the origin of the volume's space."""
    places = [(first + stop) // 2 for first, stop in zip(region.start, region.stop, strict=True)]
    centres = [t / s + place for t, s, place in zip(volume.translation, volume.scale, places, strict=True)]
    return centres[-volume.rank :][::-1] + ([] if volume.timepoint is None else [volume.timepoint])


def _layers(volume: VolumeSpec, classes: tuple[str, ...], sources: Sources, contrast: Contrast | None) -> list[dict[str, Any]]:
    """Return the layers, the lowest first."""
    layers: list[dict[str, Any]] = []
    if sources.raw:
        controls = {"shaderControls": {"normalized": {"range": list(contrast)}}} if contrast else {}
        channel = volume.channels[0] if volume.channels else volume.channel
        chosen = {} if channel is None else _channel(channel)
        layers.append({"type": "image", "name": "raw", "source": sources.raw, "opacity": 1, **controls, **chosen})
    if sources.probabilities:
        hidden = {"type": "image", "source": sources.probabilities, "opacity": 1, "visible": False}
        for label, name in enumerate(classes):
            layers.append({"name": f"probability of {name}", "shader": _shader(label), **_channel(label), **hidden})
    segmentation = {"type": "segmentation", "selectedAlpha": OPACITY}
    for image, shown in sources.heads.items():
        for number, name in enumerate(shown.channels):
            layer = {"type": "image", "source": shown.address, "opacity": 1, "visible": sources.classes is None and number == 0}
            layers.append({"name": f"{image} {name}", "shader": _shader(number), **_channel(number), **layer})
        if not shown.channels:
            layers.append({"name": image, "source": shown.address, "segments": ["1"], **segmentation})
    layers += [{"name": name, "source": source, **segmentation} for name, source in sources.instances.items()]
    if sources.classes is None:
        return layers
    layers.append(
        {
            "name": "classes",
            "source": [sources.classes, sources.names],
            "segments": [str(label) for label in range(min(1, len(classes) - 1), len(classes))],
            "segmentColors": {str(label): hex_colour(rgb) for label, rgb in class_colours(len(classes)).items()},
            "hideSegmentZero": False,
            "tab": "segments",
            **segmentation,
        }
    )
    return layers


def _shader(label: int) -> str:
    """Return a program that draws the probability of a class as brightness of the class's colour."""
    red, green, blue = (value / 255 for value in colour(label))
    return (
        "void main() {\n"
        "  float quanta = float(toRaw(getDataValue()));\n"
        f"  if (quanta > {QUANTA}.0) {{ emitTransparent(); return; }}\n"
        f"  emitRGB(vec3({red:.3f}, {green:.3f}, {blue:.3f}) * quanta / {QUANTA}.0);\n"
        "}\n"
    )


def _channel(number: int) -> dict[str, Any]:
    """Return the keys that make a layer show one channel of its image."""
    return {"localDimensions": {"c'": [1, ""]}, "localPosition": [number]}
