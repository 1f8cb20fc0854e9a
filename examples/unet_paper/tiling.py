"""Fig. 2: overlap-tiles with mirroring, and what becomes of the labels if either is done otherwise.

python -m unet_paper.tiling
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from emseg.box import Box, Triple, triple
from emseg.grid.mirror import mirrored
from emseg.grid.stitch import Canvas, classify
from emseg.grid.tiles import tiles_of
from emseg.model.predictor import TorchPredictor
from emseg.model.unet import UNet
from emseg.specs.model import ModelSpec
from unet_paper.drawing import BLUE, RED, YELLOW, picture, rectangle, svg, table, words
from unet_paper.sample import grey

SMALL = ModelSpec.unet(width=4)
"""The paper's network with fewer channels: the same context, the same lattice."""
TILE = SMALL.tile_for((1, 64, 64))
Logits = NDArray[np.float32]
"""``(class, z, y, x) float32``"""


def volume() -> NDArray[np.float32]:
    """The slice as a volume ``(z, y, x) float32``, normalised."""
    values = grey()[None].astype(np.float32)
    normalised: NDArray[np.float32] = (values - values.mean()) / values.std()
    return normalised


def predictor() -> TorchPredictor:
    """The network with weights that are drawn, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TorchPredictor(UNet(SMALL), threads=1)


def untiled(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """One pass over the whole slice, mirrored by NumPy."""
    tile, context = SMALL.tile_for(triple(raw.shape)), SMALL.context
    pads = [(c, length - c - n) for c, length, n in zip(context, tile, raw.shape, strict=True)]
    logits: Logits = network.predict(np.pad(raw, pads, mode="reflect")[None])[0]
    return logits[(slice(None), *Box.of_shape(triple(raw.shape)).slices())]


def tiled(raw: NDArray[np.float32], network: TorchPredictor, lead: Triple = (0, 0, 0)) -> Logits:
    """Tile by tile, each with its real neighbours, mirrored at the slice's faces only."""
    canvas: Canvas[np.float32] = Canvas(Box.of_shape(triple(raw.shape)), np.float32, len(SMALL.classes))
    for tile in tiles_of(canvas.box, TILE, SMALL, lead):
        made = network.predict(mirrored(raw, tile.source)[None])[0]
        canvas.paste(tile.target, made[(slice(None), *tile.target.relative_to(tile.output.start).slices())])
    return canvas.finish()


def off_lattice(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """Tiles that step by all of their output, which is no multiple of the lattice."""
    return patches(raw, network, SMALL.output_shape(TILE), raw)


def alone(raw: NDArray[np.float32], network: TorchPredictor) -> Logits:
    """Patches on the lattice, each of them mirrored at its own faces."""
    return patches(raw, network, SMALL.step(TILE), None)


def patches(raw: NDArray[np.float32], network: TorchPredictor, step: Triple, around: NDArray[np.float32] | None) -> Logits:
    """Patches `step` apart; their context is found in `around`, or mirrored if there is nothing."""
    whole = Box.of_shape(triple(raw.shape))
    logits = np.empty((len(SMALL.classes), *raw.shape), np.float32)
    for corner in product(*(range(0, length, s) for length, s in zip(raw.shape, step, strict=True))):
        target = Box.of_shape(step).shift(triple(corner)).intersect(whole)
        source = Box.of_shape(TILE).relative_to(SMALL.context)
        seen = mirrored(raw[target.slices()], source) if around is None else mirrored(around, source.shift(target.start))
        made = network.predict(seen[None])[0]
        logits[(slice(None), *target.slices())] = made[(slice(None), *Box.of_shape(target.shape).slices())]
    return logits


def told() -> str:
    """How many labels differ from those of one pass, each way of tiling."""
    raw, network = volume(), predictor()
    whole, first, later = untiled(raw, network), tiled(raw, network), tiled(raw, network, (0, 48, 16))
    rows: list[tuple[Any, ...]] = [
        ("tiles on the lattice", differing(first, whole)),
        ("the same, begun 48 and 16 pixels earlier", differing(later, whole)),
        ("tiles off the lattice", differing(off_lattice(raw, network), whole)),
        ("patches mirrored one by one", differing(alone(raw, network), whole)),
    ]
    step, output = SMALL.step(TILE)[1], SMALL.output_shape(TILE)[1]
    return "\n".join(
        [
            f"tiles of {TILE[1]} pixels make {output}; on the lattice they step by {step}, off the lattice by {output}",
            table(("labels that differ from one pass over the slice", "%"), *rows),
            f"logits that differ in a bit between the first two: {np.count_nonzero(first != later)}",
        ]
    )


def differing(logits: Logits, whole: Logits) -> str:
    """Labels that differ, in per cent."""
    return f"{100 * (classify(logits) != classify(whole)).mean():.1f}"


def drawn() -> str:
    """The first tile: what it sees (blue) reaches beyond the slice's faces (red) and is mirrored there; its output (yellow)."""
    raw, scale, edge = grey()[None], 1.8, 10
    tile = next(tiles_of(Box.of_shape(triple(raw.shape)), TILE, SMALL))
    shown = Box((0, tile.source.start[1] - edge, tile.source.start[2] - edge), (1, 240, 240))
    pixels = mirrored(raw, shown)[0]
    inside = np.zeros(pixels.shape, bool)
    inside[-shown.start[1] :, -shown.start[2] :] = True
    faded = np.where(inside, pixels, 110 + pixels * 0.5).astype(np.uint8)
    side, zero = pixels.shape[0] * scale, -shown.start[1] * scale

    def frame(box: Box, colour: str) -> str:
        _, y, x = box.relative_to(shown.start).start
        return rectangle(x * scale, y * scale, box.shape[2] * scale, box.shape[1] * scale, stroke=colour)

    notes = [
        words(10, side + 20, f"blue: what the tile sees, {TILE[1]} x {TILE[2]}, mirrored beyond the faces of the slice (red)"),
        words(
            10,
            side + 40,
            f"yellow: its output, {tile.output.shape[1]} x {tile.output.shape[2]}, of which "
            f"{tile.target.shape[1]} x {tile.target.shape[2]} are kept",
        ),
    ]
    faces = rectangle(zero, zero, side, side, stroke=RED)
    return svg(
        int(side),
        int(side) + 52,
        picture(0, 0, faded, scale),
        faces,
        frame(tile.source, BLUE),
        frame(tile.output, YELLOW),
        rectangle(0, side, side + 4, 60, fill="white"),
        *notes,
    )


if __name__ == "__main__":
    print(told())
