"""Classes of a user's own: imported by name, asked or looked at how they behave, and held to that."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from emseg.box import Triple
from emseg.errors import DeviceError, MemoryShortageError, ModelError
from emseg.model.backend import backend_of, open_predictor
from emseg.model.own import Imported, OwnPredictor, contract_of_own, read_own
from emseg.model.source import card_of, describe, digest_of, load, model_at
from emseg.specs.contract import Contract


def contract(name: str) -> Contract:
    """How a class of `detectors` behaves."""
    return contract_of_own(read_own(Imported(f"detectors:{name}")))


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
    """And what is found is right: two tilings give the same, to the last bit."""
    found = contract(name)
    assert (found.context, found.lattice, found.crop, found.local) == (context, lattice, crop, True)
    predictor = OwnPredictor(read_own(Imported(f"detectors:{name}")), 1)
    small = found.tile_for((4, 24, 24) if not found.planar else (1, 24, 24))
    large = found.tile_for((8, 48, 48) if not found.planar else (2, 48, 48))
    noise = np.random.default_rng(3).normal(size=(1, *large)).astype(np.float32)
    whole = predictor.predict(noise)
    part = predictor.predict(noise[:, : small[0], : small[1], : small[2]])
    z, y, x = part.shape[2:]
    assert whole.shape == (1, len(found.classes), *found.output_shape(large))
    np.testing.assert_array_equal(whole[:, :, :z, :y, :x], part)


def test_what_it_says_is_believed() -> None:
    place = Imported("detectors:Stated")
    spec, card = describe(place)
    assert spec.bytes_per_voxel == 12  # type: ignore[attr-defined]
    assert card == card_of(place) == {"origin": "detectors:Stated 1, a class of its user"}
    told = replace(contract("Dark"), flops_per_voxel=77)
    assert contract_of_own(read_own(Imported("detectors:Dark"), told)) is told


def test_memory_is_measured() -> None:
    """Mean has means of float32 from windows without copies, and a stack of three: Dark no more than what it gives."""
    assert 4 * 3 <= contract("Dark").bytes_per_voxel <= 4 * 5
    assert contract("Mean").bytes_per_voxel > 4 * 4
    tracemalloc.start()
    try:
        assert contract("Dark").bytes_per_voxel <= 4 * 5
        assert tracemalloc.is_tracing(), "somebody else's"
    finally:
        tracemalloc.stop()


def test_another_version_has_another_digest() -> None:
    digests = {digest_of(Imported(f"detectors:{name}")) for name in ("Dark", "DarkAgain", "Stated", "Mean")}
    assert len(digests) == 4
    assert digest_of(Imported("detectors:Dark")) == load(Imported("detectors:Dark"), contract("Dark")).digest


@pytest.mark.parametrize("name", ["Dark", "a:b:c", "a b:C", ":C", "detectors:", "/a/b:C", "__main__:Dark"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not of the form module:Class|in no module that workers can"):
        model_at(None, name)


REFUSED = {
    "nowhere:Dark": "cannot be imported .*No module named 'nowhere'",
    "detectors:Missing": "cannot be imported .*Missing",
    "detectors:function": "no class with a method predict",
    "detectors:NoPredict": "no class with a method predict",
    "detectors:NoVersion": "version of the predictor detectors:NoVersion is None",
    "detectors:NumberedVersion": "is 1, not a short text",
    "detectors:NoClasses": "must tell classes",
    "detectors:NoPlane": "must tell classes, .* planar, True or False",
    "detectors:WrongSpec": "is tuple, not a Contract",
    "detectors:Probabilities": "gives softmax, but logits",
    "detectors:Nameless": "gives 2 channels, but names 3 classes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_predictor_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]) as caught:
        describe(model_at(None, name))
    assert "\n" not in str(caught.value)


def test_one_or_the_other() -> None:
    with pytest.raises(ModelError, match=r"both the model m\.safetensors and the predictor detectors:Dark are asked for"):
        model_at("m.safetensors", "detectors:Dark")


def test_it_is_held_to_its_contract() -> None:
    place = Imported("detectors:Stated")
    assert backend_of(place, "cpu") == "torch"
    model = load(place, describe(place)[0])
    predictor = open_predictor(model, "torch", "float32", 1, "cpu")
    tile = np.ones((2, 1, 8, 9), np.float32)
    assert predictor.predict(tile).shape == (2, 2, 1, 6, 7)
    tile[0, 0, 0, 0] = -1000
    with pytest.raises(ModelError, match=r"gives the shape \(2, 2, 1, 6, 6\) for .* \(2, 1, 8, 9\), .* says \(2, 2, 1, 6, 7\)"):
        predictor.predict(tile)
    numerics = predictor.numerics((1, 40, 40))
    assert (numerics.backend, numerics.precision, numerics.threads) == ("detectors:Stated 1", "float32", 1)
    hungry = load(Imported("detectors:Hungry"), describe(place)[0])
    with pytest.raises(MemoryShortageError):
        open_predictor(hungry, "torch", "float32", 1, "cpu").predict(tile)
    with pytest.raises(DeviceError, match="computes as it likes, not with openvino in float32 on cpu: leave out --backend"):
        open_predictor(model, "openvino", "float32", 1, "cpu")
