"""Predictors of a user's own, as `segment(predictor="detectors:...")` imports them."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage

from emseg_core.specs.contract import Contract


class Dark:
    """Looks at each voxel alone."""

    version = "1"
    classes: tuple[str, ...] = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles."""
        return np.stack([tiles, -tiles], axis=1)


class DarkAgain(Dark):
    """The same by another name, in another version."""

    version = "2"


class Mean:
    """The mean of 3 x 5 x 5 voxels, as a valid convolution."""

    version = "1"
    classes = ("low", "middle", "high")
    planar = False

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles."""
        mean = sliding_window_view(tiles, (3, 5, 5), axis=(1, 2, 3)).mean(axis=(-3, -2, -1))
        return np.stack([-mean, np.full_like(mean, 0.1), mean], axis=1).astype(np.float32)


class Padded:
    """A Gaussian that fills up tiles at their ends, as filters of SciPy do."""

    version = "1"
    classes = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles, of their whole shape."""
        blurred = ndimage.gaussian_filter(tiles, (0, 0, 2, 2), mode="constant", radius=(0, 0, 6, 6))
        return np.stack([blurred, -blurred], axis=1)


class Halved:
    """The mean of cells of 2 x 4 pixels, for each pixel of them."""

    version = "1"
    classes = ("inside", "membrane")
    planar = True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles; of others than whole cells there are none."""
        n, z, y, x = tiles.shape
        cells = tiles.reshape(n, z, y // 2, 2, x // 4, 4).mean(axis=(3, 5))
        whole = cells.repeat(2, axis=2).repeat(4, axis=3)
        return np.stack([whole, -whole], axis=1)


class Stated:
    """Says itself how it behaves."""

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
        """Logits of tiles: one too few along x where the first voxel is negative."""
        short = int(tiles.flat[0] < -100)
        inner = tiles[:, :, 1:-1, 1 : -1 - short]
        return np.stack([inner, -inner], axis=1)


class Hungry(Stated):
    """Has no memory for any tile."""

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nothing."""
        raise MemoryError


class Probabilities(Stated):
    """Says that it gives what is not wanted."""

    spec = Contract(**{name: getattr(Stated.spec, name) for name in Stated.spec.__slots__} | {"activation": "softmax"})


class Nameless(Dark):
    """Has too few classes for what it gives."""

    classes = ("inside", "membrane", "other")


class NoVersion:
    """Does not say which version it is."""

    classes, planar = ("inside", "membrane"), True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles."""
        return tiles[:, None]


class NumberedVersion(NoVersion):
    """Says it in another way."""

    version = 1


class NoClasses:
    """Does not say what it tells apart."""

    version, planar = "1", True

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of tiles."""
        return tiles[:, None]


class NoPlane(NoVersion):
    """Does not say whether it looks along z."""

    version, planar = "1", None  # type: ignore[assignment]


class WrongSpec(Dark):
    """Has something else as its contract."""

    spec = ("context", (0, 0, 0))


class NoPredict:
    """Does not predict."""

    version, classes, planar = "1", ("inside", "membrane"), True


def function(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    """No class."""
    return tiles[:, None]
