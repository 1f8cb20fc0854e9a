"""Test that model files are read back as written, and that every bad file ends in one clear line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emseg_core.errors import ModelError, OutputError
from emseg_core.model.file import load_model, save_model
from emseg_core.model.header import MAX_HEADER_BYTES, model_digest, parameter_shapes, read_header
from emseg_core.model.unet import UNet
from emseg_core.specs.heads import Head
from emseg_core.specs.model import ModelSpec

SPEC = ModelSpec.unet(width=2, depth=1, classes=("inside", "membrane"), kernel=(3, 3, 3), pooling=(2, 2, 2))
CARD = {"name": "tiny", "licence": "CC BY"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(tmp_path / "tiny.safetensors", UNet(SPEC), CARD)
    return tmp_path / "tiny.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], body: Callable[[bytes], bytes] = bytes) -> None:
    """Change the header and the tensor bytes of a model file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body(data[8 + length :]))


def describe(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change emseg's entry in the header of a model file."""

    def inner(header: dict[str, Any]) -> None:
        ours = json.loads(header["__metadata__"]["emseg"])
        change(ours)
        header["__metadata__"]["emseg"] = json.dumps(ours)

    rewrite(path, inner)


def refused(path: Path, *words: str) -> str:
    """Return the message of both readers for a bad file: one line with the file and all the words."""
    with pytest.raises(ModelError) as by_header:
        read_header(path)
    with pytest.raises(ModelError) as by_load:
        load_model(path)
    message = str(by_header.value)
    assert message == str(by_load.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message, message
    return message


def test_round_trip(path: Path) -> None:
    torch.manual_seed(0)
    written = UNet(SPEC).eval()
    model = load_model(path)
    assert (model.spec, model.card) == (SPEC, CARD) == read_header(path)
    assert model.digest == model_digest(path)
    network = model.network()
    assert not network.training
    tile = torch.randn(1, 1, *SPEC.tile_for((2, 2, 2)))
    assert torch.equal(network(tile), written(tile))
    assert {weight.dtype for weight in network.state_dict().values()} == {torch.float32}


def test_networks_of_one_file_are_independent(path: Path) -> None:
    model = load_model(path)
    with torch.no_grad():
        for parameter in model.network().parameters():
            parameter.zero_()
    assert any(parameter.any() for parameter in model.network().parameters())


def test_same_content_same_digest(path: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again.safetensors", load_model(path).network(), CARD)
    assert model_digest(tmp_path / "again.safetensors") == model_digest(path)
    assert [child.name for child in sorted(tmp_path.iterdir())] == ["again.safetensors", "tiny.safetensors"]


def test_channels_last_and_bfloat16_are_stored_plain(tmp_path: Path) -> None:
    network = UNet(SPEC).to(memory_format=torch.channels_last_3d).to(torch.bfloat16)  # type: ignore[call-overload]
    save_model(tmp_path / "m.safetensors", network, CARD)
    weights = load_model(tmp_path / "m.safetensors").weights
    for name, tensor in network.state_dict().items():
        assert np.array_equal(weights[name], tensor.float().numpy())


sizes = st.sampled_from([1, 3, 5])
factors = st.integers(1, 3)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_parameter_shapes_are_those_of_the_network(data: st.DataObject) -> None:
    depth = data.draw(st.integers(0, 3))
    spec = ModelSpec(
        width=data.draw(st.integers(1, 3)),
        depth=depth,
        classes=("a", "b", "c")[: data.draw(st.integers(1, 3))],
        kernels=tuple(data.draw(st.tuples(sizes, sizes, sizes)) for _ in range(depth + 1)),
        pooling=tuple(data.draw(st.tuples(factors, factors, factors)) for _ in range(depth)),
        channels=data.draw(st.integers(1, 2)),
    )
    assert parameter_shapes(spec) == {name: tuple(weight.shape) for name, weight in UNet(spec).state_dict().items()}


def test_header_needs_no_torch(path: Path) -> None:
    code = (
        "import sys, pathlib; from emseg_core.model.header import read_header;"
        "from emseg_core.model.bundled import resolve_model;"
        "read_header(pathlib.Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "there is no model file")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("share", [0, 3, 8, 100, -1])
def test_truncated(path: Path, share: int) -> None:
    path.write_bytes(path.read_bytes()[:share])
    refused(path, "truncated", "download it again")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_are_never_loaded(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save(UNet(SPEC).state_dict(), path, _use_new_zipfile_serialization=zipped)
    refused(path, "pickle", "torch.export.save", "torch.onnx.export", "if it is a network of emseg, with", "save_model")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_never_loaded(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps({"weights": list(range(100))}, protocol))
    refused(path, "pickle", "save_model")


def test_header_as_long_as_a_pickle_begins_is_read(path: Path) -> None:
    lengths = []
    for first in (0x80, int.from_bytes(b"PK", "little")):
        target = next(n for n in range(first, 1 << 17, 256 if first == 0x80 else 1 << 16) if n > 2000)

        def pad(header: dict[str, Any], target: int = target) -> None:
            header["__metadata__"]["pad"] = ""
            header["__metadata__"]["pad"] = "x" * (target - len(json.dumps(header)))

        rewrite(path, pad)
        lengths.append(path.read_bytes()[:2])
        assert read_header(path) == (SPEC, CARD)
        assert load_model(path).spec == SPEC
    assert lengths[0][:1] == b"\x80"
    assert lengths[1] == b"PK"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"a text file, not a model", "header would have"),
        ((10).to_bytes(8, "little") + b"not json at all", "not JSON"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((20000).to_bytes(8, "little") + b"[" * 20000, "not JSON"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b" " * 32, str(MAX_HEADER_BYTES)),
    ],
)
def test_not_safetensors(path: Path, data: bytes, word: str) -> None:
    path.write_bytes(data)
    refused(path, "not a safetensors file", word, "save_model")


def test_no_description(path: Path) -> None:
    rewrite(path, lambda header: header.pop("__metadata__"))
    refused(path, "no 'emseg' entry", "save_model")


@pytest.mark.parametrize("text", ["", "[]", "7", '{"format": 1}', "[" * 20000])
def test_damaged_description(path: Path, text: str) -> None:
    rewrite(path, lambda header: header["__metadata__"].update(emseg=text))
    refused(path, "damaged")


def test_other_format(path: Path) -> None:
    describe(path, lambda ours: ours.update(format=2))
    refused(path, "format 2", "format 1")


def test_card_of_numbers(path: Path) -> None:
    describe(path, lambda ours: ours["card"].update(f1=0.9))
    refused(path, "card")


def test_bad_specs(path: Path) -> None:
    describe(path, lambda ours: ours["spec"].update(width=0))
    refused(path, "width 0")
    describe(path, lambda ours: ours["spec"].update(width=float("inf")))
    refused(path)
    describe(path, lambda ours: ours.update(spec=[]))
    refused(path, "not a JSON object")


def test_missing_tensors_are_named(path: Path) -> None:
    rewrite(path, lambda header: (header.pop("head.bias"), header.pop("head.weight")))
    refused(path, "lacks head.bias, head.weight")


def test_extra_tensors_are_named(path: Path) -> None:
    rewrite(path, lambda header: [header.update({f"more.{n}": header["head.bias"]}) for n in range(5)])
    refused(path, "more.0, more.1, more.2 and 2 more")


def test_wrong_shapes_are_named(path: Path) -> None:
    rewrite(path, lambda header: header["head.weight"].update(shape=[2, 2]))
    refused(path, "head.weight", "[2, 2]", "[2, 2, 1, 1, 1]")


def test_wrong_spec_for_the_weights(path: Path) -> None:
    describe(path, lambda ours: ours["spec"].update(width=3))
    refused(path, "the network needs")
    describe(path, lambda ours: ours["spec"].update(width=2, depth=0, kernels=[[3, 3, 3]], pooling=[]))
    refused(path, "which the network does not")


def test_wrong_type(path: Path) -> None:
    rewrite(path, lambda header: header["head.bias"].update(dtype="I32"))
    refused(path, "head.bias is I32", "F32")


@pytest.mark.parametrize("offsets", [[0, 8], [-8, 0], [0, 1 << 62], None, [0], ["0", "8"], [0.0, 8.0]])
def test_wrong_offsets(path: Path, offsets: object) -> None:
    rewrite(path, lambda header: header["up.0.bias"].update(data_offsets=offsets))
    refused(path)


def test_bytes_after_the_last_tensor(path: Path) -> None:
    rewrite(path, lambda header: None, lambda body: body + b"1234")
    refused(path, "4 bytes follow")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(path: Path, tmp_path: Path, value: float) -> None:
    bad = torch.tensor(value).numpy().tobytes()
    rewrite(path, lambda header: None, lambda body: bad + body[4:])
    assert read_header(path)[0] == SPEC
    with pytest.raises(ModelError, match="not all finite"):
        load_model(path)
    network = UNet(SPEC)
    with torch.no_grad():
        network.head.weight.fill_(value)
    with pytest.raises(ModelError, match=r"head\.weight"):
        save_model(tmp_path / "new.safetensors", network, CARD)
    assert not (tmp_path / "new.safetensors").exists()


def test_card_to_save_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="f1 is not"):
        save_model(tmp_path / "new.safetensors", UNet(SPEC), {"f1": 0.9})  # type: ignore[dict-item]


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written \(No such file"):
        save_model(tmp_path / "none" / "new.safetensors", UNet(SPEC), CARD)


def test_what_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        save_model(tmp_path / "taken", UNet(SPEC), CARD)
    assert [child.name for child in tmp_path.iterdir()] == ["taken"]


@given(st.binary(max_size=64), st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_any_damage_ends_in_a_model_error_or_a_model(
    tmp_path_factory: pytest.TempPathFactory, patch: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("damage") / "m.safetensors"
    torch.manual_seed(0)
    save_model(path, UNet(SPEC), CARD)
    data = path.read_bytes()
    path.write_bytes(data[:place] + patch + data[place + len(patch) :])
    for read in (read_header, load_model):
        try:
            read(path)
        except ModelError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_card_does_nothing_to_a_terminal(path: Path) -> None:
    save_model(path, UNet(SPEC), {"na\nme": "red \x1b[31m\r\nand\ttwo  lines"})
    assert read_header(path)[1] == {"na me": r"red \x1b[31m and two lines"}


EDGES = Head("edges", "affinities", ("0 0 1", "0 1 0"), "sigmoid logits", offsets=((0, 0, 1), (0, 1, 0)), repulsive=True)
PARTS = Head("parts", "independent", ("mito", "er"), "sigmoid logits", thresholds=(0.5, 0.25))


@pytest.mark.parametrize("classes", [(), ("inside", "membrane")])
def test_heads_are_read_back(tmp_path: Path, classes: tuple[str, ...]) -> None:
    spec = ModelSpec.unet(width=2, depth=1, classes=classes, others=(PARTS, EDGES))
    save_model(tmp_path / "heads.safetensors", UNet(spec), CARD)
    model = load_model(tmp_path / "heads.safetensors")
    assert model.spec == spec == read_header(tmp_path / "heads.safetensors")[0]
    assert model.spec.heads[-2:] == (PARTS, EDGES)
    assert model.spec.classes == classes
    assert len(model.weights["head.bias"]) == model.spec.logits == len(classes) + 4


def test_classes_alone_are_written_as_ever(path: Path) -> None:
    assert "heads" not in SPEC.to_json()
    assert b"heads" not in path.read_bytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"activation": "sigmoid"}, "takes channels of its own and their sigmoid"),
        ({"source": [0, 1]}, "takes channels of its own"),
        ({"offsets": [[0, 0, 1], [0, 10**9, 0]]}, "has the offset (0, 1000000000, 0)"),
        ({"channels": ["a\nb", "c"]}, "too long or not printable"),
        ({"kind": "independent"}, "offsets, which only affinities have"),
        ({"more": 1}, "not valid"),
    ],
)
def test_bad_heads(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "heads.safetensors"
    save_model(path, UNet(ModelSpec.unet(width=2, depth=1, classes=(), others=(EDGES,))), CARD)
    describe(path, lambda ours: ours["spec"]["heads"][0].update(change))
    refused(path, words)
