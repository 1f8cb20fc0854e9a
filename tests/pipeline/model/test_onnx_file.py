"""Test ONNX files whose weights lie in a second file, and what the last operation says of an output."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from foreign import Padded, save_onnx, save_package, state
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data

import emseg_core.model.onnx_file
from emseg_core.errors import ModelError
from emseg_core.model.backend import backend_of, open_predictor
from emseg_core.model.model_place import describe, digest_of, load
from emseg_core.model.onnx_file import read_outputs, with_weights

TILE = np.random.default_rng(2).standard_normal((1, 1, 40, 48), np.float32)


def split(path: Path, data: str = "n.onnx.data") -> Path:
    """Move the weights of an ONNX file to a second one, as `torch.onnx.export` does by default."""
    model = onnx.load(path)
    convert_model_to_external_data(model, location=data, size_threshold=0)
    onnx.save(model, path)
    return path


def logits(path: Path) -> Any:
    """Return the logits of a tile."""
    spec, _ = describe(path)
    return open_predictor(load(path, spec), backend_of(path, "cpu"), "float32", 1, "cpu").predict(TILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a network in one file."""
    folder = tmp_path_factory.mktemp("whole")
    state(save_onnx(folder / "n.onnx", Padded(), (1, 1, 32, 32)))
    return folder


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the network in two files."""
    shutil.copytree(whole, tmp_path / "parts")
    return split(tmp_path / "parts" / "n.onnx")


def changed(path: Path, change: Callable[[TensorProto], Any]) -> Path:
    """Change the first of the weights in a second file."""
    model = onnx.load(path, load_external_data=False)
    change(next(tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL))
    path.write_bytes(model.SerializeToString())
    return path


def entry(key: str, value: str) -> Callable[[TensorProto], Any]:
    """Return a function that sets where a tensor lies."""

    def act(tensor: TensorProto) -> None:
        for known in tensor.external_data:
            if known.key == key:
                known.value = value
                return
        tensor.external_data.add(key=key, value=value)

    return act


# -- Weights in a second file ---------------------------------------------------------------------------------------


def test_weights_are_those_beside_the_model_wherever_it_is_run(
    whole: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the same name in the current folder is never opened."""
    truth = logits(whole / "n.onnx")
    others = tmp_path / "others"
    others.mkdir()
    (others / "n.onnx.data").write_bytes(bytes((parts.parent / "n.onnx.data").stat().st_size))
    known = digest_of(parts)
    for folder in (parts.parent, others, Path("/")):
        monkeypatch.chdir(folder)
        np.testing.assert_array_equal(logits(parts), truth)
        assert digest_of(parts) == known
    monkeypatch.chdir(parts.parent)
    np.testing.assert_array_equal(logits(Path("n.onnx")), truth)


def test_other_weights_are_another_model(parts: Path) -> None:
    known, data = digest_of(parts), parts.with_name("n.onnx.data")
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert digest_of(parts) != known


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_weights_of_a_package_may_be_two_files(whole: Path, parts: Path, tmp_path: Path, kind: str) -> None:
    files = {f"weights/{file.name}": file.read_bytes() for file in (parts, parts.with_name("n.onnx.data"))}
    package = save_package(tmp_path / "p.zip", files, weights={"onnx": {"source": "weights/n.onnx"}})
    if kind == "folder":
        with zipfile.ZipFile(package) as archive:
            archive.extractall(tmp_path / "folder")
        package = tmp_path / "folder"
    np.testing.assert_array_equal(logits(package), logits(whole / "n.onnx"))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../n.onnx.data", "sub/../../n.onnx.data", "", "https://somewhere.org/w", "a\\b", "a\0b"]
)
def test_a_file_elsewhere_is_never_opened(parts: Path, name: str) -> None:
    (parts.parents[1] / "n.onnx.data").write_bytes(parts.with_name("n.onnx.data").read_bytes())
    with pytest.raises(ModelError, match="only files in its own folder are read") as refused:
        describe(changed(parts, entry("location", name)))
    assert "\n" not in str(refused.value)


def test_a_link_out_of_the_folder_is_not_followed(parts: Path) -> None:
    data, outside = parts.with_name("n.onnx.data"), parts.parents[1] / "outside"
    data.rename(outside)
    data.symlink_to(outside)
    with pytest.raises(ModelError, match="is a link that leads out of its folder"):
        describe(parts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (entry("offset", "99999999"), r"end at byte 1\d+ of 'n.onnx.data', which has \d+ bytes"),
        (entry("offset", "-4"), "cannot be read: export it again"),
        (entry("offset", "0x10"), "cannot be read: export it again"),
        (entry("length", "4"), r"of 144 bytes, but 4 in 'n.onnx.data'"),
        (entry("basepath", "/etc"), r"by \['basepath'\]"),
        (entry("location", "missing.data"), "cannot be read"),
        (lambda tensor: tensor.dims.append(2**40), r"bytes with its weights, but an ONNX network may have"),
        (lambda tensor: tensor.dims.append(-1), "which is not supported: export them as float32"),
        (lambda tensor: setattr(tensor, "data_type", TensorProto.STRING), "which is not supported: export them as float32"),
    ],
    ids=range(9),
)
def test_places_that_do_not_fit_the_file_are_refused(parts: Path, change: Callable[[TensorProto], Any], said: str) -> None:
    def act(tensor: TensorProto) -> None:
        if "may have" in said:
            del tensor.external_data[1:]  # without a length
        change(tensor)

    with pytest.raises(ModelError, match=said) as refused:
        describe(changed(parts, act))
    assert "\n" not in str(refused.value)


def test_a_model_has_a_largest_size(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emseg_core.model.onnx_file, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match=r"an ONNX network may have 1000: export it with torch.export"):
        describe(parts)


def outside(name: str) -> TensorProto:
    """Return a tensor in a second file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=(2,), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w")
    return tensor


def branch(tensor: TensorProto) -> onnx.GraphProto:
    """Return a graph with this tensor as a constant."""
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [])


def test_tensors_are_found_wherever_they_are() -> None:
    """OpenVINO opens files for any of them."""
    model = ModelProto(graph=branch(outside("attribute")))
    model.graph.initializer.append(outside("weight"))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(outside("values"))
    sparse.indices.CopyFrom(outside("indices"))
    branches = {"then_branch": branch(outside("then")), "else_branch": branch(outside("else"))}
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], **branches))
    model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["c"], value=outside("function")))
    model.training_info.add().algorithm.initializer.append(outside("training"))
    values = np.array([1, 2], np.float32)
    complete, files = with_weights(model.SerializeToString(), "n.onnx", lambda name, most: values.tobytes())
    assert files == [values.tobytes()]
    assert complete.count(values.tobytes()) == 8
    assert b"location" not in complete


def test_a_model_in_one_file_stays_as_it_is(whole: Path) -> None:
    data = (whole / "n.onnx").read_bytes()
    assert with_weights(data, "n.onnx", lambda name, most: b"") == (data, [])


# -- The last operation ---------------------------------------------------------------------------------------------


def ends(*nodes: onnx.NodeProto, opset: int = 17) -> str | None:
    """Return what is read of the end of a graph from x to y."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, "h", "w")) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (output,) = read_outputs(model.SerializeToString(), "n.onnx")
    assert (output.name, output.channels) == ("y", 3)
    return output.ending


def test_the_last_operation_says_what_an_output_means() -> None:
    node = helper.make_node
    assert ends(node("Sigmoid", ["x"], ["y"])) == "sigmoid"
    assert ends(node("Softmax", ["x"], ["y"], axis=1)) == "softmax"
    assert ends(node("LogSoftmax", ["x"], ["y"], axis=-3)) == "log-softmax"
    last = (
        node("Softmax", ["x"], ["a"], axis=1),
        node("Cast", ["a"], ["b"], to=TensorProto.FLOAT),
        node("Identity", ["b"], ["y"]),
    )
    assert ends(*last) == "softmax"
    turned = node("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), node("Softmax", ["a"], ["b"], axis=3)
    back = node("Transpose", ["b"], ["y"], perm=[0, 3, 1, 2])
    assert ends(*turned, back) == "softmax"
    assert ends(*turned, back, opset=11) == "softmax"


def test_what_only_looks_like_an_activation_says_nothing() -> None:
    node = helper.make_node
    assert ends(node("Relu", ["x"], ["y"])) is None
    assert ends(node("Softmax", ["x"], ["y"], axis=2)) is None  # over a row of the image
    assert ends(node("Softmax", ["x"], ["y"])) is None  # the last axis
    assert ends(node("Softmax", ["x"], ["y"], axis=1), opset=11) is None  # then it is over all voxels
    assert ends(node("Sigmoid", ["x"], ["a"]), node("Mul", ["a", "a"], ["y"])) is None
    assert ends(node("Sigmoid", ["x"], ["a"]), node("Cast", ["a"], ["y"], to=TensorProto.INT32)) is None
    assert ends(node("Sigmoid", ["x"], ["y"], domain="mine")) is None
    assert ends(node("Relu", ["x"], ["other"])) is None


def test_torch_and_onnx_agree_on_activations(tmp_path: Path) -> None:
    for number, (last, wanted) in enumerate(
        [(torch.nn.Softmax(dim=1), "softmax"), (torch.nn.LogSoftmax(dim=-3), "log-softmax"), (torch.nn.Sigmoid(), "sigmoid")]
    ):
        path = save_onnx(tmp_path / f"{number}.onnx", torch.nn.Sequential(Padded(3), last), (1, 1, 32, 32))
        (output,) = read_outputs(path.read_bytes(), "n.onnx")
        assert (output.channels, output.ending) == (3, wanted)
