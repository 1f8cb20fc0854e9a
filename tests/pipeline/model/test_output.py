"""Test what the output of a network is taken for: what is stated, what its last operation says, and what is asked."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import AXES, Padded, save_exported, save_onnx, save_package, state
from torch import Tensor, nn

from emseg_core.errors import ModelError
from emseg_core.model.external_model import read_external
from emseg_core.model.model_place import card_of, describe, digest_of, load
from emseg_core.specs.contract import Contract

SHAPE = (1, 1, 32, 32)
SAVERS: dict[str, Callable[[Path, nn.Module], Path]] = {
    "pt2": lambda folder, network: save_exported(folder / "n.pt2", network, SHAPE),
    "onnx": lambda folder, network: save_onnx(folder / "n.onnx", network, SHAPE),
}
MANY, ONE = r"nothing says what the \d+ channels of .* mean", r"nothing says what the channel of .* means"


class Squeezed(nn.Module):
    """Logits that lie between 0 and 1 by chance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = Padded(channels)

    def forward(self, x: Tensor) -> Tensor:
        given: Tensor = 0.5 + 0.001 * self.network(x)
        return given


class Heads(nn.Module):
    """A network with two outputs, the less useful one first."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes, self.affinities = Padded(10), nn.Sequential(Padded(3), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.shapes(x), self.affinities(x)


class InPlace(nn.Module):
    """A sigmoid that is changed in place afterwards, which is no probability any more."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Padded(1)

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.network(x))
        share.mul_(2)
        return share


def refused(path: Path, said: str) -> str:
    with pytest.raises(ModelError, match=said) as caught:
        describe(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize(("channels", "said"), [(3, MANY), (2, MANY), (1, ONE)])
@pytest.mark.parametrize("network", [Padded, Squeezed])
def test_logits_are_asked_about(
    tmp_path: Path, kind: str, channels: int, said: str, network: Callable[[int], nn.Module]
) -> None:
    """Affinities and organelles are logits of several channels as well, and a single channel may be a distance."""
    path = SAVERS[kind](tmp_path, network(channels))
    choices = refused(path, said)
    assert 'activation = "sigmoid logits"' in choices
    assert f"into {path.name}.toml beside it" in choices
    assert ('activation = "logits" (the 3 channels exclude one another' in choices) == (channels == 3)
    assert (f"channel = 0 to {channels - 1}" in choices) == (channels > 1)


@pytest.mark.parametrize("kind", SAVERS)
def test_what_is_stated_wins_and_is_shown(tmp_path: Path, kind: str) -> None:
    path = state(SAVERS[kind](tmp_path, Padded(3)), "channel = 2", 'activation = "sigmoid logits"')
    spec, card = describe(path)
    assert isinstance(spec, Contract)
    assert (spec.channel, spec.activation, len(spec.classes)) == (2, "sigmoid logits", 2)
    assert card["output"] == f"sigmoid logits, stated in {path.name}.toml"
    state(path, 'activation = "logits"')
    assert describe(path)[0].classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize(
    ("last", "channels", "activation", "ending"),
    [
        (nn.Softmax(dim=1), 3, "softmax", "softmax"),
        (nn.Softmax(dim=-3), 3, "softmax", "softmax"),
        (nn.LogSoftmax(dim=1), 3, "logits", "log-softmax"),
        (nn.Sigmoid(), 1, "sigmoid", "sigmoid"),
    ],
    ids=["softmax", "softmax from the end", "log-softmax", "sigmoid"],
)
def test_the_last_operation_is_a_statement(
    tmp_path: Path, kind: str, last: nn.Module, channels: int, activation: str, ending: str
) -> None:
    path = SAVERS[kind](tmp_path, nn.Sequential(Padded(channels), last, nn.Dropout()))
    spec, card = describe(path)
    assert isinstance(spec, Contract)
    assert spec.activation == activation
    assert card["output"] == f"{activation}, the network ends with a {ending}"
    assert card_of(path) == card == load(path, spec).card
    state(path, 'activation = "sigmoid logits"', "channel = 0")
    assert (
        describe(path)[1]["output"] == f"sigmoid logits, stated in {path.name}.toml, although the network ends with a {ending}"
    )


@pytest.mark.parametrize("kind", SAVERS)
def test_a_softmax_along_a_row_says_nothing(tmp_path: Path, kind: str) -> None:
    refused(SAVERS[kind](tmp_path, nn.Sequential(Padded(3), nn.Softmax(dim=3))), MANY)


def test_a_sigmoid_that_is_changed_in_place_says_nothing(tmp_path: Path) -> None:
    refused(SAVERS["pt2"](tmp_path, InPlace()), ONE)


@pytest.mark.parametrize("kind", SAVERS)
def test_a_share_of_a_softmax_is_a_probability(tmp_path: Path, kind: str) -> None:
    path = state(SAVERS[kind](tmp_path, nn.Sequential(Padded(3), nn.Softmax(dim=1))), "channel = 1")
    spec = describe(path)[0]
    assert isinstance(spec, Contract)
    assert spec.gives == "sigmoid in channel 1"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['activation = "sigmoid"'], r"3 channels that do not exclude one another .* channel = 0 to 2"),
        (['activation = "softmax"', "channel = 1"], r"gives a single channel to use, not softmax of several"),
        (['activation = "logits"', "channel = 1"], r"gives a single channel to use, not logits of several"),
        (['activation = "logits"', "channel = true"], r"channel in .* is True, not int"),
        (['activation = "logits"', "output = 1"], r"has the outputs 0 \(.*, 3 channels\), but n.pt2.toml selects 1"),
        (['activation = "logits"', 'output = "none"'], r"but n.pt2.toml selects 'none'"),
        (
            ['normalise = "slice"', "mean = 1.0", "deviation = 1.0"],
            r"has both normalise and mean, of which one would be ignored",
        ),
        (["percentiles = [1, 99]", "mean = 1.0", "deviation = 1.0"], r"has both mean and percentiles"),
        (["eps = 1.0", "mean = 1.0", "deviation = 1.0"], r"has both mean and eps"),
        (["eps = -1.0"], r"a negative eps"),
        (["percentiles = [99, 1]"], r"percentiles in .* is \[99, 1\], not two numbers, the lower one first"),
        (["percentiles = [1, 101]"], r"percentiles outside of 0 to 100"),
        (["clip = [0]"], r"clip in .* is \[0\], not two numbers"),
        (["rescale = [0, 1]"], r"rescale in .* is \[0, 1\], not a factor other than 0"),
    ],
    ids=range(14),
)
def test_settings_that_would_be_ignored_are_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    refused(state(SAVERS["pt2"](tmp_path, Padded(3)), *lines), said)


@pytest.mark.parametrize("kind", SAVERS)
def test_one_of_several_outputs_is_chosen(tmp_path: Path, kind: str) -> None:
    path = SAVERS[kind](tmp_path, Heads())
    said = refused(path, r"has 2 outputs, 0 \(.*, 10 channels\), 1 \(.*, 3 channels\), and nothing says which one to use")
    assert f"output = 0 into {path.name}.toml" in said
    names = [output.name for output in read_external(path).outputs()]
    digests = set()
    for asked in ("1", f'"{names[1]}"'):
        state(path, f"output = {asked}", "channel = 2")
        spec, card = describe(path)
        assert isinstance(spec, Contract)
        assert (spec.activation, spec.channel) == ("sigmoid", 2)
        assert card["output"] == f"{names[1]}, sigmoid, the network ends with a sigmoid"
        digests.add(digest_of(path))
    state(path, "output = 0", 'activation = "logits"')
    assert len(describe(path)[0].classes) == 10
    assert len(digests | {digest_of(path)}) == 3


# -- Packages -------------------------------------------------------------------------------------------------------


def package(folder: Path, network: nn.Module, channels: int, *postprocessing: str | dict[str, object]) -> Path:
    """Save a package of a network with this postprocessing."""
    one = save_onnx(folder / "w.onnx", network, SHAPE)
    names = [f"organelle {number}" for number in range(channels)]
    axes = [AXES[0], {"type": "channel", "channel_names": names}, *AXES[2:]]
    steps = [{"id": step} if isinstance(step, str) else step for step in postprocessing]
    outputs = [{"id": "out", "axes": axes, "postprocessing": steps}]
    return save_package(folder / "p.zip", {"w.onnx": one.read_bytes()}, weights={"onnx": {"source": "w.onnx"}}, outputs=outputs)


def test_postprocessing_is_applied(tmp_path: Path) -> None:
    softmax, sigmoid = package(tmp_path, Padded(3), 3, "softmax"), "the package's postprocessing is a sigmoid"
    assert describe(softmax)[1]["output"] == "logits, the package's postprocessing is a softmax"
    many = package(tmp_path, Padded(3), 3, "sigmoid")
    refused(
        many, r"gives 3 channels that do not exclude one another \(sigmoid logits, .* p.zip.toml beside it, channel = 0 to 2"
    )
    spec, card = describe(state(many, "channel = 1"))
    assert isinstance(spec, Contract)
    assert (spec.gives, spec.classes) == ("sigmoid logits in channel 1", ("background", "organelle 1"))
    assert card["output"] == f"sigmoid logits, {sigmoid}"
    (tmp_path / "p.zip.toml").unlink()
    refused(package(tmp_path, Padded(3), 3), MANY)
    binary = package(tmp_path, Padded(1), 1, "sigmoid", {"id": "binarize", "kwargs": {"threshold": 0.5}}, "ensure_dtype")
    assert describe(binary)[1]["output"] == f"sigmoid logits, {sigmoid}"


@pytest.mark.parametrize(
    ("network", "steps", "said"),
    [
        (Padded(1), ["scale_range"], "postprocesses its output with 'scale_range'"),
        (Padded(1), ["sigmoid", {"id": "binarize", "kwargs": {"threshold": 0.3}}], "'binarize'.*0.3"),
        (Padded(1), [{"id": "binarize", "kwargs": {"threshold": 0.5}}], "not known to be a probability"),
        (Padded(3), [{"id": "softmax", "kwargs": {"axis": "x"}}], "'softmax'.*'x'"),
        (Padded(3), ["softmax", "sigmoid"], r"'sigmoid' \{\} after \['softmax'\]"),
        (Padded(1), ["sigmoid", {"id": "sigmoid", "kwargs": {"twice": True}}], "'sigmoid' with twice after"),
        (nn.Sequential(Padded(1), nn.Sigmoid()), ["sigmoid"], "ends with a sigmoid, and its package applies a sigmoid"),
        (Padded(1), ["stardist_postprocessing"], "'stardist_postprocessing'"),
    ],
    ids=range(8),
)
def test_other_postprocessing_is_refused_by_name(
    tmp_path: Path, network: nn.Module, steps: list[str | dict[str, object]], said: str
) -> None:
    path = package(tmp_path, network, 3 if "softmax" in str(steps) else 1, *steps)
    message = refused(path, said)
    assert "write activation = into p.zip.toml beside it" in message
    state(path, 'activation = "sigmoid logits"', "channel = 0")
    assert describe(path)[1]["output"].startswith("sigmoid logits, stated in p.zip.toml")


def test_settings_beside_a_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(package(tmp_path, nn.Sequential(Padded(3), nn.Sigmoid()), 3)) as archive:
        archive.extractall(folder)
    assert "channel = 0 to 2" in refused(folder, "folder.toml beside it")
    before = digest_of(folder)
    state(folder, "channel = 1")
    monkeypatch.chdir(folder)
    for path in (folder, folder / "rdf.yaml", Path(), Path("rdf.yaml")):
        spec = describe(path)[0]
        assert isinstance(spec, Contract)
        assert spec.gives == "sigmoid in channel 1"
        assert digest_of(path) != before
    state(folder / "rdf.yaml", "channel = 2")
    refused(folder, "is within the package, where it would be ignored: move it to folder.toml beside it")


def test_one_of_several_outputs_of_a_package_is_chosen(tmp_path: Path) -> None:
    one = save_onnx(tmp_path / "w.onnx", Heads(), SHAPE)
    outputs = [{"id": "shapes", "axes": [AXES[0], {"type": "channel"}, *AXES[2:]]}, {"id": "affinities"}]
    path = save_package(
        tmp_path / "p.zip", {"w.onnx": one.read_bytes()}, weights={"onnx": {"source": "w.onnx"}}, outputs=outputs
    )
    refused(path, r'has 2 outputs, shapes, affinities, and .* output = "shapes" into p.zip.toml beside it')
    refused(state(path, 'output = "other"'), r"has the outputs shapes, affinities, but p.zip.toml selects 'other'")
    for asked in ('"affinities"', "1"):
        state(path, f"output = {asked}", "channel = 0")
        assert describe(path)[1]["output"].endswith("sigmoid, the network ends with a sigmoid")
