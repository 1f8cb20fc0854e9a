"""Test the paper's numbers section by section, and that README and pictures match what the scripts make today."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from emseg_core.grid.stitch import classify
from emseg_core.specs.model import ModelSpec
from unet_paper import deformation, initialisation, network, receptive_field, skips, tiling, weight_map
from unet_paper.drawing import GREYS
from unet_paper.sample import grey, segments, truth

FOLDER = Path(network.__file__).parent
README = (FOLDER / "README.md").read_text()
SECTIONS = re.findall(r"^\$ python -m unet_paper\.(\w+)$", README, re.MULTILINE)
PICTURES = sorted(path.name for path in (FOLDER / "pictures").iterdir())
NUMBER = re.compile(r"\d+(?:\.\d+)?")
PNG = re.compile(r"(?<=base64,)[^\"]+")

FIGURE_1 = [
    ([572, 570, 568], [1, 64, 64]),
    ([284, 282, 280], [64, 128, 128]),
    ([140, 138, 136], [128, 256, 256]),
    ([68, 66, 64], [256, 512, 512]),
    ([32, 30, 28], [512, 1024, 1024]),
    ([56, 54, 52], [1024, 512, 512]),
    ([104, 102, 100], [512, 256, 256]),
    ([200, 198, 196], [256, 128, 128]),
    ([392, 390, 388, 388], [128, 64, 64, 2]),
]
"""Pixels along an edge and channels, from Fig. 1 of the paper."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the README and pictures by the README's own command."""
    folder = tmp_path_factory.mktemp("paper")
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert commands == "cd examples\npython -m unet_paper\n"
    command = [sys.executable, "-m", "unet_paper", str(folder)]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


def agree(ours: str, theirs: str) -> bool:
    """Return whether two texts agree, with equal whole numbers and others within two of the last digit."""
    if NUMBER.sub("#", ours) != NUMBER.sub("#", theirs):
        return False
    pairs = zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True)
    return all(abs(float(one) - float(other)) <= 2.01 * last_digit(one) for one, other in pairs)


def last_digit(number: str) -> float:
    """Return the value of the last digit of a decimal number; 0 for a whole one."""
    digits = len(number.partition(".")[2])
    return float(10.0**-digits) if digits else 0.0


def pixels(png: str) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))).astype(np.int64)


def test_what_counts_as_agreement() -> None:
    assert agree("a 0.53 of 12", "a 0.52 of 12")
    assert not agree("a 0.53 of 12", "a 0.50 of 12")
    assert not agree("a 0.53 of 12", "a 0.53 of 13")
    assert not agree("a 0.53 of 12", "b 0.53 of 12")


def test_the_readme_says_what_the_sections_tell(made: Path) -> None:
    assert agree((made / "README.md").read_text(), README)


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_are_programs(section: str) -> None:
    (told,) = re.findall(rf"^```text\n\$ (python -m unet_paper\.{section}\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    command, _, expected = told.partition("\n")
    program = [sys.executable, *command.split()[1:]]
    done = subprocess.run(program, cwd=FOLDER.parent, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert agree(done.stdout, expected)


def test_each_section_is_in_the_readme() -> None:
    helpers = {"__init__", "__main__", "drawing", "sample"}
    assert {path.stem for path in FOLDER.glob("*.py")} - helpers == set(SECTIONS)


def test_each_picture_is_shown(made: Path) -> None:
    assert sorted(path.name for path in (made / "pictures").iterdir()) == PICTURES
    shown = re.findall(r"\]\(pictures/([^)]+)\)", README)
    assert sorted(shown) == PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_that_are_drawn_today(made: Path, name: str) -> None:
    """Shapes and words are compared by their numbers, images by their pixels, since Pillow versions compress differently."""
    ours, theirs = ((folder / "pictures" / name).read_text() for folder in (made, FOLDER))
    assert agree(PNG.sub("", ours), PNG.sub("", theirs))
    for one, other in zip(PNG.findall(ours), PNG.findall(theirs), strict=True):
        difference = np.abs(pixels(one) - pixels(other))
        assert difference.max() <= GREYS
        assert difference.mean() < 0.1


def test_pictures_are_small() -> None:
    assert sum((FOLDER / "pictures" / name).stat().st_size for name in PICTURES) < 600_000


def test_figure_1() -> None:
    assert [(row.sizes, row.channels) for row in network.rows(network.PAPER, 572)] == FIGURE_1
    assert network.PAPER.parameters == 31_030_658


@pytest.mark.parametrize("spec", [ModelSpec.unet(), ModelSpec.unet(width=2, depth=2, kernel=(1, 5, 5), pooling=(1, 3, 3))])
def test_where_every_pixel_goes(spec: ModelSpec) -> None:
    assert sum(network.lost(spec)) == spec.context[1]


def test_tiles_step_by_384() -> None:
    assert network.PAPER.step(network.TILE) == (1, 384, 384)


def test_figure_2_tiled_is_untiled() -> None:
    raw, drawn = tiling.volume(), tiling.predictor()
    whole, tiled = tiling.untiled(raw, drawn), tiling.tiled(raw, drawn)
    labels = classify(whole)
    assert 0.01 < labels.mean() < 0.99  # a network with a constant result would prove nothing
    assert np.abs(tiled - whole).max() < 1e-5 * np.abs(whole).max()
    ties = np.abs(np.diff(whole, axis=0)[0]) < 1e-5 * np.abs(whole).max()
    assert np.array_equal(classify(tiled)[~ties], labels[~ties])
    assert np.array_equal(tiling.tiled(raw, drawn, (0, 48, 16)), tiled)


def test_figure_2_otherwise_there_are_seams() -> None:
    raw, drawn = tiling.volume(), tiling.predictor()
    labels = classify(tiling.untiled(raw, drawn))
    for way in (tiling.off_lattice, tiling.alone):
        assert (classify(way(raw, drawn)) != labels).mean() > 0.01


def test_figure_3_equation_2() -> None:
    """It is checked at some membrane pixels, with distances to all pixels of all segments."""
    parts, classes, found = segments(), truth(), weight_map.weights()
    ids = range(1, int(parts.max()) + 1)
    places = [np.argwhere(parts == number) for number in ids]
    chosen = np.random.default_rng(0).choice(np.argwhere(classes == 1), 40, replace=False)
    balance = np.count_nonzero(classes != 255) / 2 / np.count_nonzero(classes == 1)
    for pixel in chosen:
        nearest, second = np.sort([np.hypot(*(place - pixel).T).min() for place in places])[:2]
        expected = balance + 10 * np.exp(-((nearest + second) ** 2) / (2 * 5**2))
        assert found[tuple(pixel)] == pytest.approx(expected, rel=1e-5)
    assert len(np.unique(found[classes == 0])) == 1


def test_borders_count_less_the_wider_they_are() -> None:
    for width in (1, 4, 20):
        assert weight_map.between(width) == pytest.approx(np.exp(-((width + 1) ** 2) / 50), rel=1e-5)


def test_the_deformed_slice_comes_from_where_the_grid_points() -> None:
    raw, shifts, found = grey().astype(float), deformation.field(), deformation.deformed()
    for y, x in ((60, 100), (125, 125), (200, 77)):
        row, column = y + shifts[0, y, x], x + shifts[1, y, x]
        (top, up), (left, over) = divmod(row, 1), divmod(column, 1)
        corners = raw[int(top) : int(top) + 2, int(left) : int(left) + 2]
        assert abs(found[y, x] - np.array([1 - up, up]) @ corners @ np.array([1 - over, over])) <= 1


def test_nothing_is_folded_over() -> None:
    areas = deformation.areas(deformation.field())
    assert areas.min() > 0
    assert areas.std() > 0.01
    y, x = np.indices((9, 9), np.float32)
    assert np.allclose(deformation.areas(np.stack([0.5 * y + 0.2 * x, 0.1 * y - 0.25 * x])), 1.5 * 0.75 - 0.2 * 0.1)


@pytest.mark.parametrize("stage", receptive_field.stages(receptive_field.SMALL), ids=lambda stage: stage.name)
def test_receptive_fields_by_arithmetic_and_by_gradient(stage: receptive_field.Stage) -> None:
    found = receptive_field.measured(stage)
    assert found == {pixel: receptive_field.seen(receptive_field.SMALL, stage, pixel) for pixel in found}


def test_the_receptive_field_of_the_output() -> None:
    assert receptive_field.sizes(network.PAPER, receptive_field.Stage("up", 0)) == [188, 204]
    before, behind = receptive_field.reach(network.PAPER)
    assert min(before) == min(behind) == 92
    assert before[0] == behind[3] == 92  # where tiles start and end


def test_skips() -> None:
    found = skips.skips(network.PAPER, 572)
    assert [(skip.made - skip.kept) // 2 for skip in found] == [4, 16, 40, 88]
    assert [skip.channels for skip in found] == [512, 256, 128, 64]
    lowest = found[0]
    assert lowest.products == 512 * 512 * 9 * 54 * 54
    assert (lowest.numbers, lowest.below) == (512 * 56 * 56, 1024 * 28 * 28)


def test_he_initialisation_of_each_layer() -> None:
    """The deviation of n normal numbers has a relative standard error of ``1 / sqrt(2 n)``."""
    found = initialisation.layers()
    assert len(found) == 23  # "in total the network has 23 convolutional layers"
    assert sum(layer.weights for layer in found) < network.PAPER.parameters
    assert max(abs(layer.errors) for layer in found) < 4
    assert {layer.terms for layer in found} == {9, 64, 128, 256, 512, 1024, 576, 1152, 2304, 4608, 9216}
