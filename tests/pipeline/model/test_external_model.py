"""Test networks from other tools: their contracts, their logits, and which files are rejected."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from foreign import Bare, Padded, save_exported, save_onnx, save_package, state, tile_of
from onnx import TensorProto, helper
from torch import nn

from emseg_core.errors import DeviceError, ModelError
from emseg_core.grid.plan import network_from_json
from emseg_core.grid.stitch import softmax
from emseg_core.model.backend import backend_of, open_predictor
from emseg_core.model.model_place import describe, digest_of, load
from emseg_core.specs.contract import Contract
from emseg_core.specs.model import ModelSpec

SPEC = ModelSpec.unet(width=3, depth=2)
SHAPE = tile_of(SPEC)


def predictor(path: Path) -> Any:
    """Return the predictor of a file on the CPU."""
    spec, _ = describe(path)
    return open_predictor(load(path, spec), backend_of(path, "cpu"), "float32", 1, "cpu")


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return a network with padding for the suffix of its file."""
    folder = tmp_path_factory.mktemp("padded")
    files = save_exported(folder / "n.pt2", Padded(), (1, 1, 32, 32)), save_onnx(folder / "n.onnx", Padded(), (1, 1, 32, 32))
    return {path.suffix: path.read_bytes() for path in files}


def save(folder: Path, kind: str, network: nn.Module, shape: tuple[int, ...] = SHAPE) -> Path:
    """Save a file of this format."""
    if kind == "exported":
        return state(save_exported(folder / "n.pt2", network, shape))
    one = state(save_onnx(folder / "n.onnx", network, shape))
    if kind == "onnx":
        return one
    return save_package(folder / "n.zip", {"w.onnx": one.read_bytes()}, weights={"onnx": {"source": "w.onnx"}})


@pytest.mark.parametrize("kind", ["exported", "onnx", "package"])
def test_a_network_of_others_predicts_what_it_is(tmp_path: Path, kind: str) -> None:
    network = Bare(SPEC)
    path = save(tmp_path, kind, network)
    opened = predictor(path)
    spec = opened.spec
    assert (spec.context, spec.lattice, spec.local, spec.gives) == (SPEC.context, SPEC.lattice, True, "logits")
    assert spec.classes == (("inside", "membrane") if kind == "package" else ("class 0", "class 1"))
    assert spec.parameters == SPEC.parameters
    assert 0.7 < spec.flops(spec.least) / SPEC.flops(spec.least) < 1.3
    assert network_from_json(json.loads(json.dumps(spec.to_json()))) == spec
    tiles = np.random.default_rng(1).standard_normal((2, 3, *SHAPE[2:]), np.float32)
    with torch.inference_mode():
        truth = network.network(torch.from_numpy(tiles)[:, None]).numpy()
    np.testing.assert_allclose(opened.predict(tiles), truth, atol=2e-5)


@pytest.mark.parametrize("kind", ["exported", "onnx"])
def test_a_cubic_network_predicts_what_it_is(tmp_path: Path, kind: str) -> None:
    spec = ModelSpec(2, 1, ("a", "b"), ((3, 3, 3), (3, 3, 3)), ((2, 2, 2),))
    network = Bare(spec)
    opened = predictor(save(tmp_path, kind, network, tile_of(spec)))
    assert (opened.spec.planar, opened.spec.context, opened.spec.lattice) == (False, spec.context, spec.lattice)
    tiles = np.random.default_rng(1).standard_normal((2, *tile_of(spec)[2:]), np.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(opened.predict(tiles), network(torch.from_numpy(tiles)[:, None]).numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("last", "channels", "gives"),
    [
        (nn.Softmax(dim=1), 2, "softmax"),
        (nn.Sigmoid(), 1, "sigmoid"),
        (nn.Identity(), 1, "sigmoid logits"),
        (nn.Identity(), 2, "logits"),
    ],
    ids=["softmax", "sigmoid", "sigmoid logits", "logits"],
)
def test_whatever_it_gives_becomes_the_same_probabilities(tmp_path: Path, last: nn.Module, channels: int, gives: str) -> None:
    network = nn.Sequential(Padded(channels), last)
    path = save_exported(tmp_path / "n.pt2", network, (1, 1, 32, 32))
    if "logits" in gives:
        with pytest.raises(ModelError, match=r"nothing says what the .*channels? of"):
            describe(path)
        state(path, f'activation = "{gives}"')
    opened = predictor(path)
    assert opened.spec.gives == gives
    crop = opened.spec.crop[1]
    tile = np.random.default_rng(2).standard_normal((1, 1, 40, 48), np.float32)
    with torch.inference_mode():
        logits = network[0](torch.from_numpy(tile))[0].double()
    shares = torch.softmax(logits, 0) if channels == 2 else torch.cat([1 - torch.sigmoid(logits), torch.sigmoid(logits)])
    found = softmax(opened.predict(tile)[0])[:, 0]
    np.testing.assert_allclose(found, shares[:, crop:-crop, crop:-crop].numpy(), atol=1e-5)


def test_one_channel_of_several_can_be_named(tmp_path: Path) -> None:
    network = nn.Sequential(Padded(3), nn.Sigmoid())
    path = save_exported(tmp_path / "n.pt2", network, (1, 1, 32, 32))
    with pytest.raises(ModelError, match=r"gives 3 channels that do not exclude one another .*, channel = 0 to 2"):
        describe(path)
    settings = path.with_name("n.pt2.toml")
    settings.write_text('channel = 1\nclasses = ["outside", "boundary"]\nvoxel_size = "8 8 8 nm"\nmean = 0\ndeviation = 255\n')
    spec, card = describe(path)
    assert isinstance(spec, Contract)
    assert (spec.channel, spec.activation, spec.classes) == (1, "sigmoid", ("outside", "boundary"))
    assert (card["voxel_size"], card["mean"], card["deviation"]) == ("8 8 8 nm", "0", "255")
    before = digest_of(path)
    settings.write_text(settings.read_text().replace("channel = 1", "channel = 2"))
    assert digest_of(path) != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("chanel = 1", "has the unknown key 'chanel': use one of output, activation, channel"),
        ("channel = 2\nactivation = 'sigmoid'", r"has 2 channels, counted from 0, but its settings select channel 2"),
        ("classes = ['a', 'b', 'c']\nactivation = 'logits'", r"has 2 classes, but its settings name 3 \(a, b, c\)"),
        ("classes = 'a'", "classes in .* is 'a', not list"),
        ("mean = 3", "has only one of mean and deviation"),
        ("mean = 3\ndeviation = 0.0", "a deviation that is not positive"),
        ("normalise = 'tile'", "normalise in .* is 'tile', not volume or slice"),
        ("activation = 'relu'", "the activation is 'relu', but must be one of logits, softmax, sigmoid, sigmoid logits"),
        ("only = [", "cannot be read"),
    ],
)
def test_wrong_settings_are_refused(padded: dict[str, bytes], tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "n.pt2"
    path.write_bytes(padded[".pt2"])
    path.with_name("n.pt2.toml").write_text(text)
    with pytest.raises(ModelError, match=said) as refused:
        describe(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["exported", "onnx"])
@pytest.mark.parametrize(
    ("last", "step"),
    [(nn.AvgPool2d(2), "2"), (nn.Upsample(scale_factor=2), "1/2")],
)
def test_an_output_of_another_resolution_is_refused_for_what_it_is(
    tmp_path: Path, kind: str, last: nn.Module, step: str
) -> None:
    path = save(tmp_path, kind, nn.Sequential(Padded(), last), (1, 1, 32, 32))
    with pytest.raises(
        ModelError, match=f"one value for every {step} voxels of its input, so its output has another"
    ) as refused:
        describe(path)
    assert "\n" not in str(refused.value)


# -- ONNX -----------------------------------------------------------------------------------------------------------


def graph(*nodes: onnx.NodeProto, constants: list[TensorProto] | None = None) -> onnx.ModelProto:
    """Return an ONNX model of these nodes, from x to y."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, "h", "w")) for name in "xy"]
    made = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], constants or [])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)], ir_version=8)


def test_an_operation_of_ones_own_is_refused(tmp_path: Path) -> None:
    path = state(tmp_path / "n.onnx", 'activation = "sigmoid"')
    path.write_bytes(graph(helper.make_node("RunCode", ["x"], ["y"], domain="mine")).SerializeToString())
    with pytest.raises(ModelError, match=r"OpenVINO cannot read .*n.onnx .* export it with standard operations"):
        describe(path)


def test_weights_in_another_file_are_not_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(9, np.float32).tobytes())
    weight = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=(1, 1, 3, 3), data_location=TensorProto.EXTERNAL)
    for key, value in (("location", str(secret)), ("offset", "0"), ("length", "36")):
        weight.external_data.add(key=key, value=value)
    path = tmp_path / "n.onnx"
    path.write_bytes(graph(helper.make_node("Conv", ["x", "k"], ["y"]), constants=[weight]).SerializeToString())
    with pytest.raises(ModelError, match=r"only files in its own folder are read"):
        describe(path)


def test_damaged_onnx_is_refused(padded: dict[str, bytes], tmp_path: Path) -> None:
    whole = padded[".onnx"]
    for bad in (b"", b"\x08\x01 what is this", whole[: len(whole) // 2]):
        (tmp_path / "bad.onnx").write_bytes(bad)
        with pytest.raises(ModelError) as refused:
            describe(tmp_path / "bad.onnx")
        assert "\n" not in str(refused.value)


def test_each_kind_is_computed_by_one_library(padded: dict[str, bytes], tmp_path: Path) -> None:
    for suffix, library, other in ((".onnx", "openvino", "torch"), (".pt2", "torch", "openvino")):
        path = state(tmp_path / f"n{suffix}")
        path.write_bytes(padded[suffix])
        model = load(path, describe(path)[0])
        with pytest.raises(DeviceError, match=f"runs in {library}, not in {other}"):
            open_predictor(model, other, "float32", 1, "cpu")  # type: ignore[arg-type]
        with pytest.raises(DeviceError, match="in float16, but the CPU here is fast only in float32"):
            open_predictor(model, library, "float16", 1, "cpu")  # type: ignore[arg-type]


# -- BioImage.IO ----------------------------------------------------------------------------------------------------


def test_a_package_may_be_a_folder(padded: dict[str, bytes], tmp_path: Path) -> None:
    package = save_package(tmp_path / "n.zip", {"w.onnx": padded[".onnx"]}, weights={"onnx": {"source": "w.onnx"}})
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "folder")
    for path in (tmp_path / "folder", tmp_path / "folder" / "rdf.yaml"):
        assert describe(path) == (
            describe(package)[0],
            {
                "origin": f"{path.name}, not of emseg",
                "output": "logits, the package's postprocessing is a softmax",
                "normalise": "volume",
                "eps": "1e-06",
            },
        )
        assert digest_of(path) == digest_of(package)


@pytest.mark.parametrize("kind", ["pytorch_state_dict", "torchscript", "keras_hdf5"])
def test_weights_that_run_code_are_refused(tmp_path: Path, kind: str) -> None:
    package = save_package(tmp_path / "n.zip", {"w": b""}, weights={kind: {"source": "w", "architecture": "evil.py"}})
    with pytest.raises(ModelError, match=f"has weights as {kind}, which run code .* add-weights"):
        describe(package)


@pytest.mark.parametrize("source", ["../n.onnx", "/etc/passwd", "https://somewhere.org/n.onnx", "link"])
def test_weights_outside_a_package_are_refused(padded: dict[str, bytes], tmp_path: Path, source: str) -> None:
    (tmp_path / "n.onnx").write_bytes(padded[".onnx"])
    package = save_package(tmp_path / "n.zip", {}, weights={"onnx": {"source": source}})
    with zipfile.ZipFile(package) as archive:
        archive.extractall(tmp_path / "folder")
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "n.onnx")
    with pytest.raises(ModelError, match="download the whole package"):
        describe(tmp_path / "folder")


def test_how_a_package_prepares_images_is_known_or_refused(padded: dict[str, bytes], tmp_path: Path) -> None:
    def package(**step: Any) -> Path:
        inputs = [{"id": "raw", "preprocessing": [step]}]
        return save_package(
            tmp_path / "n.zip", {"w.onnx": padded[".onnx"]}, weights={"onnx": {"source": "w.onnx"}}, inputs=inputs
        )

    assert "mean" not in describe(package(id="zero_mean_unit_variance"))[1]
    card = describe(package(name="scale_linear", kwargs={"gain": [0.0078125], "offset": -1.0}))[1]
    assert (float(card["mean"]), float(card["deviation"])) == (128, 128)
    card = describe(package(id="fixed_zero_mean_unit_variance", kwargs={"mean": 101.5, "std": 11.0}))[1]
    assert (float(card["mean"]), float(card["deviation"])) == (101.5, 11)
    with pytest.raises(ModelError, match="preprocesses images with 'scale_mean_variance'"):
        describe(package(id="scale_mean_variance", kwargs={"reference_tensor": "other"}))


def test_an_object_in_yaml_is_not_made(tmp_path: Path) -> None:
    """`yaml.load` would run this."""
    mark = tmp_path / "was here"
    with zipfile.ZipFile(tmp_path / "n.zip", "w") as archive:
        archive.writestr("rdf.yaml", f"weights: !!python/object/apply:os.mkdir ['{mark}']")
    with pytest.raises(ModelError, match="cannot be read"):
        describe(tmp_path / "n.zip")
    assert not mark.exists()


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shutil.make_archive(str(tmp_path / "n"), "zip", tmp_path / "folder")
    for path in (tmp_path / "folder", tmp_path / "n.zip"):
        with pytest.raises(ModelError, match=r"is not a BioImage.IO package: it has no rdf.yaml"):
            describe(path)
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ModelError, match="cannot be read"):
        describe(tmp_path / "bad.zip")
