"""User-defined predictors, imported as by `segment(predictor="detectors:...")`."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.specs.contract import Contract
from emseg_core.specs.heads import Anchor, Head, classes_head


class Dark:
    """Predictor that looks at each voxel alone."""

    version = "1"
    classes: tuple[str, ...] = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles."""
        return np.stack([tiles, -tiles], axis=1)


class DarkAgain(Dark):
    """The same predictor with another name and version."""

    version = "2"


class Mean:
    """Predictor that averages 3 x 5 x 5 voxels, as a valid convolution does."""

    version = "1"
    classes = ("low", "middle", "high")
    planar = False

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles."""
        mean = sliding_window_view(tiles, (3, 5, 5), axis=(1, 2, 3)).mean(axis=(-3, -2, -1))
        return np.stack([-mean, np.full_like(mean, 0.1), mean], axis=1).astype(np.float32)


class Padded:
    """Gaussian filter that pads tiles at their ends, as SciPy's filters do."""

    version = "1"
    classes = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits in the full shape of the tiles."""
        blurred = ndimage.gaussian_filter(tiles, (0, 0, 2, 2), mode="constant", radius=(0, 0, 6, 6))
        return np.stack([blurred, -blurred], axis=1)


class Halved:
    """Predictor that gives every pixel the mean of its cell of 2 x 4 pixels."""

    version = "1"
    classes = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles, which must consist of whole cells."""
        n, z, y, x = tiles.shape
        cells = tiles.reshape(n, z, y // 2, 2, x // 4, 4).mean(axis=(3, 5))
        whole = cells.repeat(2, axis=2).repeat(4, axis=3)
        return np.stack([whole, -whole], axis=1)


class Stated:
    """Predictor that states its own contract."""

    version = "1"
    spec = Contract(
        classes=("inside", "membrane"),
        planar=True,
        context=(0, 1, 1),
        lattice=(1, 1, 1),
        least=(1, 3, 3),
        crop=(0, 0, 0),
        activation="logits",
        local=True,
        parameters=0,
        flops_per_voxel=10,
        bytes_per_voxel=12,
    )

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles; one too few along x if the first voxel is negative."""
        short = int(tiles.flat[0] < -100)
        inner = tiles[:, :, 1:-1, 1 : -1 - short]
        return np.stack([inner, -inner], axis=1)


class Hungry(Stated):
    """Predictor without memory for any tile."""

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raise an error."""
        raise MemoryError


class Probabilities(Stated):
    """Predictor that states an unsupported kind of result."""

    spec = Contract(**{name: getattr(Stated.spec, name) for name in Stated.spec.__slots__} | {"activation": "softmax"})


class Sigmoid(Stated):
    """Predictor that states the probability of the second class, which only networks in files may give."""

    spec = Contract(**{name: getattr(Stated.spec, name) for name in Stated.spec.__slots__} | {"activation": "sigmoid"})


class Nameless(Dark):
    """Predictor that names too few classes."""

    classes = ("inside", "membrane", "other")


class NoVersion:
    """Predictor that does not state its version."""

    classes, planar = ("inside", "membrane"), True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles."""
        return tiles[:, None]


class NumberedVersion(NoVersion):
    """Predictor that states its version as a number."""

    version = 1


class NoClasses:
    """Predictor that does not name its classes."""

    version, planar = "1", True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of tiles."""
        return tiles[:, None]


class NoPlane(NoVersion):
    """Predictor that does not state whether it uses context along z."""

    version, planar = "1", None  # type: ignore[assignment]


class WrongSpec(Dark):
    """Predictor whose contract has the wrong type."""

    spec = ("context", (0, 0, 0))


class NoPredict:
    """Class that cannot predict."""

    version, classes, planar = "1", ("inside", "membrane"), True


def function(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Not a class."""
    return tiles[:, None]


class Many:
    """A network with heads of all kinds, as local as a 3 x 5 x 5 mean: values, affinities, independent classes, and classes."""

    version = "1"
    planar = False
    heads = (
        Head("distances", "values", ("dark", "bright"), "none"),
        Head("coarse", "values", ("dark",), "none", scale=(-1.5, 1.5)),
        Head("affinities", "affinities", ("-1 0 0", "0 0 -1"), "sigmoid", offsets=((-1, 0, 0), (0, 0, -1))),
        Head("organelles", "independent", ("mito", "er"), "sigmoid", thresholds=(0.5, 0.4)),
        classes_head(("inside", "membrane")),
    )

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the channels of all heads."""
        mean = Mean().predict(tiles)[:, 2]
        share = 1 / (1 + np.exp(-mean))
        return np.stack([mean, -mean, mean, share, 1 - share, share, share**2, -mean, mean], 1).astype(np.float32)


class Alike:
    """A network whose heads have channels of the same name."""

    version = "1"
    planar = True
    heads = (
        Head("near", "affinities", ("0 0 1",), "sigmoid", offsets=((0, 0, 1),)),
        Head("far", "affinities", ("0 0 1", "0 0 9"), "sigmoid", offsets=((0, 0, 1), (0, 0, 9))),
    )

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the channels of both heads."""
        share = 1 / (1 + np.exp(-tiles))
        return np.stack([share, 1 - share, share**2], 1).astype(np.float32)


def edges_head(anchor: Anchor) -> Head:
    """Return a head of affinities to the nearest voxels."""
    return Head("edges", "affinities", ("z", "y", "x"), "sigmoid", offsets=((1, 0, 0), (0, 1, 0), (0, 0, 1)), anchor=anchor)


class NearEdges:
    """A network that tells grey values apart: affinities to the voxels before, stored where they end, but stated otherwise."""

    version = "1"
    planar = False
    heads = (edges_head("source"),)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return 1 where a voxel equals the one before it."""
        here = tiles[:, 1:-1, 1:-1, 1:-1]
        before = (tiles[:, :-2, 1:-1, 1:-1], tiles[:, 1:-1, :-2, 1:-1], tiles[:, 1:-1, 1:-1, :-2])
        return np.stack([here == other for other in before], 1).astype(np.float32)


class RightNearEdges(NearEdges):
    """The same, stated as it is."""

    heads = (edges_head("destination"),)


class Edges:
    """Affinities that depend on the voxels at both ends alone, and an independent class: turning tiles changes nothing."""

    version = "1"
    planar = False
    offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, -3, 0), (0, 0, 3), (-1, 0, 1), (-1, 0, -1), (-1, 1, 0), (-1, -1, 0))
    heads = (
        Head("affinities", "affinities", tuple("abcdefghi"), "sigmoid", offsets=offsets),
        Head("organelles", "independent", ("mito",), "sigmoid", thresholds=(0.6,)),
    )

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the channels of both heads, for voxels that are at least (1, 3, 3) from the end."""

        def at(offset: tuple[int, ...]) -> NDArray[np.float32]:
            z, y, x = (slice(c + o, n - c + o) for c, o, n in zip((1, 3, 3), offset, tiles.shape[1:], strict=True))
            return tiles[:, z, y, x]

        sign = 1 if self.heads[0].anchor == "source" else -1
        here = at((0, 0, 0))
        ends = [at(tuple(sign * length for length in offset)) for offset in self.offsets]
        edges = [1 / (1 + np.abs(here - other)) for other in ends]
        return np.stack([*edges, 1 / (1 + np.exp(-here))], 1).astype(np.float32)


class EdgesBehind(Edges):
    """The same, stored at the voxel that the offset leads to."""

    heads = (
        Head("affinities", "affinities", tuple("abcdefghi"), "sigmoid", offsets=Edges.offsets, anchor="destination"),
        Edges.heads[1],
    )


class OneSided(Edges):
    """Affinities of which one has no image when tiles are turned."""

    heads = (
        Head("affinities", "affinities", tuple("abcdefghi"), "sigmoid", offsets=(*Edges.offsets[:8], (0, 0, 2))),
        Edges.heads[1],
    )


class Uneven(Edges):
    """A network that takes the direction of an edge into account, so that turning tiles changes its affinities."""

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the channels of both heads."""
        found = super().predict(tiles)
        found[:, 2] *= 0.5
        return found
