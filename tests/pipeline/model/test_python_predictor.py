"""Test user-defined classes: imported by name, with a contract that is stated or measured, and enforced."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from emseg_core.box import Triple
from emseg_core.errors import DeviceError, MemoryShortageError, ModelError
from emseg_core.model.backend import backend_of, open_predictor
from emseg_core.model.model_place import card_of, describe, digest_of, load, locate_model
from emseg_core.model.python_predictor import ImportPath, PythonPredictor, import_model, python_contract
from emseg_core.specs.contract import Contract


def contract(name: str) -> Contract:
    """Return the measured contract of a class of `detectors`."""
    return python_contract(import_model(ImportPath(f"detectors:{name}")))


@pytest.mark.parametrize(
    ("name", "context", "lattice", "crop"),
    [
        ("Dark", (0, 0, 0), (1, 1, 1), (0, 0, 0)),
        ("Mean", (1, 2, 2), (1, 1, 1), (0, 0, 0)),
        ("Padded", (0, 6, 6), (1, 1, 1), (0, 6, 6)),
        ("Halved", (0, 0, 0), (1, 2, 4), (0, 0, 0)),
    ],
)
def test_how_it_behaves_is_found(name: str, context: Triple, lattice: Triple, crop: Triple) -> None:
    """The measured contract is right: two tilings give the same result to the last bit."""
    found = contract(name)
    assert (found.context, found.lattice, found.crop, found.local) == (context, lattice, crop, True)
    predictor = PythonPredictor(import_model(ImportPath(f"detectors:{name}")), 1)
    small = found.tile_for((4, 24, 24) if not found.planar else (1, 24, 24))
    large = found.tile_for((8, 48, 48) if not found.planar else (2, 48, 48))
    noise = np.random.default_rng(3).normal(size=(1, *large)).astype(np.float32)
    whole = predictor.predict(noise)
    part = predictor.predict(noise[:, : small[0], : small[1], : small[2]])
    z, y, x = part.shape[2:]
    assert whole.shape == (1, len(found.classes), *found.output_shape(large))
    np.testing.assert_array_equal(whole[:, :, :z, :y, :x], part)


def test_what_it_says_is_believed() -> None:
    place = ImportPath("detectors:Stated")
    spec, card = describe(place)
    assert spec.bytes_per_voxel == 12  # type: ignore[attr-defined]
    assert card == card_of(place) == {"origin": "detectors:Stated 1, a class of its user"}
    told = replace(contract("Dark"), flops_per_voxel=77)
    assert python_contract(import_model(ImportPath("detectors:Dark"), told)) is told


def test_memory_is_measured() -> None:
    """Mean computes float32 means of windows without copies, and stacks three; Dark needs only its result."""
    assert 4 * 3 <= contract("Dark").bytes_per_voxel <= 4 * 5
    assert contract("Mean").bytes_per_voxel > 4 * 4
    tracemalloc.start()
    try:
        assert contract("Dark").bytes_per_voxel <= 4 * 5
        assert tracemalloc.is_tracing(), "somebody else's"
    finally:
        tracemalloc.stop()


def test_another_version_has_another_digest() -> None:
    digests = {digest_of(ImportPath(f"detectors:{name}")) for name in ("Dark", "DarkAgain", "Stated", "Mean")}
    assert len(digests) == 4
    assert digest_of(ImportPath("detectors:Dark")) == load(ImportPath("detectors:Dark"), contract("Dark")).digest


@pytest.mark.parametrize("name", ["Dark", "a:b:c", "a b:C", ":C", "detectors:", "/a/b:C", "__main__:Dark"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not of the form module:Class|cannot be imported by workers"):
        locate_model(None, name)


REFUSED = {
    "nowhere:Dark": "cannot be imported .*No module named 'nowhere'",
    "detectors:Missing": "cannot be imported .*Missing",
    "detectors:function": "is not a class with a method predict",
    "detectors:NoPredict": "is not a class with a method predict",
    "detectors:NoVersion": "version of the predictor detectors:NoVersion is None",
    "detectors:NumberedVersion": "is 1, not a short text",
    "detectors:NoClasses": "lacks classes",
    "detectors:NoPlane": "lacks classes, .* planar, True or False",
    "detectors:WrongSpec": "is a tuple, not a Contract",
    "detectors:Probabilities": "gives softmax, not logits",
    "detectors:Sigmoid": "gives sigmoid, not logits",
    "detectors:Nameless": "gives 2 channels, but has 3 classes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_predictor_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]) as caught:
        describe(locate_model(None, name))
    assert "\n" not in str(caught.value)


def test_one_or_the_other() -> None:
    with pytest.raises(ModelError, match=r"both the model m\.safetensors and the predictor detectors:Dark are given"):
        locate_model("m.safetensors", "detectors:Dark")


def test_it_is_held_to_its_contract() -> None:
    place = ImportPath("detectors:Stated")
    assert backend_of(place, "cpu") == "torch"
    model = load(place, describe(place)[0])
    predictor = open_predictor(model, "torch", "float32", 1, "cpu")
    tile = np.ones((2, 1, 8, 9), np.float32)
    assert predictor.predict(tile).shape == (2, 2, 1, 6, 7)
    tile[0, 0, 0, 0] = -1000
    with pytest.raises(ModelError, match=r"returns shape \(2, 2, 1, 6, 6\) for .* \(2, 1, 8, 9\), .* says \(2, 2, 1, 6, 7\)"):
        predictor.predict(tile)
    numerics = predictor.numerics((1, 40, 40))
    assert (numerics.backend, numerics.precision, numerics.threads) == ("detectors:Stated 1", "float32", 1)
    hungry = load(ImportPath("detectors:Hungry"), describe(place)[0])
    with pytest.raises(MemoryShortageError):
        open_predictor(hungry, "torch", "float32", 1, "cpu").predict(tile)
    with pytest.raises(
        DeviceError, match="chooses its own library, so it does not run with openvino in float32 on cpu: leave out --backend"
    ):
        open_predictor(model, "openvino", "float32", 1, "cpu")
