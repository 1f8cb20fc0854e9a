"""Test the descriptions of BioImage.IO packages against another implementation of their steps, by their test tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import AXES, Padded, save_onnx, save_package, state
from numpy.typing import NDArray
from torch import nn

from emseg_core.errors import ModelError
from emseg_core.model.model_place import describe
from emseg_core.model.package_check import check_package

RAW = np.random.default_rng(4).gamma(9, 12, (1, 1, 40, 48)).clip(0, 255).astype(np.uint8)
Step = tuple[str, dict[str, Any]]


def npy(array: NDArray[Any]) -> bytes:
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


def unit() -> nn.Module:
    """Return a network that gives what it takes."""
    network = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        network.weight.fill_(1)
        network.bias.fill_(0)  # type: ignore[union-attr]
    return network


def package(
    folder: Path,
    wanted: NDArray[Any],
    preprocessing: list[Step] = [],  # noqa: B006
    postprocessing: list[Step] = [],  # noqa: B006
    network: nn.Module | None = None,
    old: bool = False,
    **described: Any,
) -> Path:
    """Save a package with test tensors, format 0.5 or 0.4."""
    key, one = "name" if old else "id", save_onnx(folder / "w.onnx", network or unit(), (1, 1, 32, 32))
    steps = [[{key: name, "kwargs": given} for name, given in steps] for steps in (preprocessing, postprocessing)]
    axes: Any = "bcyx" if old else [AXES[0], {"type": "channel"}, *AXES[2:]]
    source = {key: "raw", "axes": axes, "preprocessing": steps[0]}
    output = {key: "out", "axes": axes, "postprocessing": steps[1]}
    if old:
        described = {"format_version": "0.4.9", "test_inputs": ["in.npy"], "test_outputs": ["out.npy"], **described}
        output["shape"] = {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
    else:
        source["test_tensor"], output["test_tensor"] = {"source": "in.npy"}, {"source": "out.npy"}
    files = {"w.onnx": one.read_bytes(), "in.npy": npy(RAW), "out.npy": npy(wanted)}
    described = {"inputs": [source], "outputs": [output], "weights": {"onnx": {"source": "w.onnx"}}, **described}
    return save_package(folder / "p.zip", files, **described)


EXACT: dict[str, Any] = {
    "config": {"bioimageio": {"reproducibility_tolerance": [{"relative_tolerance": 1e-5, "absolute_tolerance": 1e-5}]}}
}
REFERENCE: dict[str, Callable[..., NDArray[Any]]] = {
    "scale_linear": lambda x, gain=1, offset=0: x * gain + offset,
    "fixed_zero_mean_unit_variance": lambda x, mean, std: (x - mean) / std,
    "zero_mean_unit_variance": lambda x, eps=1e-6, **_: (x - x.mean()) / (x.std() + eps),
    "fixed": lambda x, mean, std, **_: (x - mean) / std,
    "clip": lambda x, **limits: x.clip(limits.get("min"), limits.get("max")),
    "ensure_dtype": lambda x, dtype: x.astype(dtype).astype(np.float64),
    "scale_range": lambda x, min_percentile=0, max_percentile=100, eps=1e-6, **_: (
        (x - np.percentile(x, min_percentile)) / (np.percentile(x, max_percentile) - np.percentile(x, min_percentile) + eps)
    ),
}
"""The steps as the format describes them, each applied to a whole image."""
CHAINS: list[list[Step]] = [
    [],
    [("ensure_dtype", {"dtype": "uint8"}), ("ensure_dtype", {"dtype": "float32"})],
    [("scale_linear", {"gain": 1 / 255}), ("fixed_zero_mean_unit_variance", {"mean": 0.5, "std": 0.16})],
    [("scale_linear", {"gain": 1 / 255}), ("scale_linear", {"gain": -1.0, "offset": 1.0})],
    [("scale_linear", {"gain": 1 / 255}), ("zero_mean_unit_variance", {"eps": 0.01})],
    [("zero_mean_unit_variance", {"axes": ["batch", "channel", "y", "x"]}), ("scale_linear", {"gain": 0.5, "offset": 3.0})],
    [
        ("scale_linear", {"gain": -2.0}),
        ("fixed_zero_mean_unit_variance", {"mean": -100.0, "std": 40.0}),
        ("clip", {"max": 1.0}),
    ],
    [("clip", {"min": 60.0, "max": 120.0}), ("scale_linear", {"gain": -1 / 60, "offset": 2.0})],
    [("clip", {"min": 60.0, "max": 200.0}), ("clip", {"max": 120.0}), ("ensure_dtype", {"dtype": "float32"})],
    [("scale_range", {"min_percentile": 1.0, "max_percentile": 99.8, "axes": ["y", "x"]})],
    [("scale_range", {"eps": 7.0, "reference_tensor": "raw"})],
    [
        ("scale_range", {"min_percentile": 5.0, "max_percentile": 95.0}),
        ("scale_linear", {"gain": 2.0, "offset": -1.0}),
        ("clip", {"min": -1.0, "max": 1.0}),
    ],
]


def applied(steps: list[Step]) -> NDArray[np.float32]:
    values = RAW.astype(np.float64)
    for name, given in steps:
        values = REFERENCE["fixed" if given.get("mode") == "fixed" else name](values, **given)
    return values.astype(np.float32)


@pytest.mark.parametrize("steps", CHAINS, ids=range(len(CHAINS)))
def test_steps_of_preprocessing_follow_one_another(tmp_path: Path, steps: list[Step]) -> None:
    path = state(package(tmp_path, applied(steps), steps, **EXACT), 'activation = "sigmoid logits"')
    found = check_package(path)
    assert (found.holds, found.mismatches, found.values) == (True, 0, RAW.size), found
    assert "output out: the same" in str(found)
    state(path, 'activation = "sigmoid logits"', "mean = 3.0", "deviation = 2.0")  # wins over all steps
    assert not check_package(path).holds


@pytest.mark.parametrize(
    "steps",
    [
        [("zero_mean_unit_variance", {"mode": "fixed", "mean": 100.0, "std": 30.0, "axes": "yx"})],
        [("zero_mean_unit_variance", {"mode": "per_sample", "axes": "yx"})],
        [("scale_linear", {"gain": 0.5, "axes": "yx"}), ("zero_mean_unit_variance", {"mode": "per_dataset", "axes": "cyx"})],
        [("scale_range", {"mode": "per_sample", "axes": "yx", "min_percentile": 1.0, "max_percentile": 99.0})],
    ],
    ids=range(4),
)
def test_steps_of_format_0_4(tmp_path: Path, steps: list[Step]) -> None:
    plain = [(name, {key: value for key, value in given.items() if key != "axes"}) for name, given in steps]
    path = state(package(tmp_path, applied(plain), steps, old=True, **EXACT), 'activation = "sigmoid logits"')
    assert check_package(path).mismatches == 0


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([("scale_mean_variance", {"reference_tensor": "raw"})], "'scale_mean_variance'"),
        ([("binarize", {"threshold": 0.5})], "'binarize'"),
        ([("scale_linear", {"gain": 0.0})], "'scale_linear' with the gain 0"),
        ([("scale_linear", {"gain": [1.0, 2.0]})], r"'scale_linear' with gain \[1.0, 2.0\]"),
        ([("scale_linear", {"gain": float("nan")})], "'scale_linear' with gain nan"),
        ([("scale_linear", {"factor": 2.0})], "'scale_linear' with factor"),
        ([("fixed_zero_mean_unit_variance", {"mean": 0.0, "std": 0.0})], "with the deviation 0"),
        ([("fixed_zero_mean_unit_variance", {"mean": 0.0})], "'fixed_zero_mean_unit_variance' with {'mean': 0.0}"),
        ([("zero_mean_unit_variance", {"mode": "fixed"})], "'zero_mean_unit_variance' with {'mode': 'fixed'}"),
        ([("zero_mean_unit_variance", {"axes": ["x"]})], r"over the axes \['x'\], not over the whole image"),
        ([("clip", {"max": 9.0}), ("zero_mean_unit_variance", {})], "after a step that clips, inverts or measures"),
        ([("scale_range", {}), ("zero_mean_unit_variance", {})], "after a step that clips, inverts or measures"),
        ([("scale_range", {"reference_tensor": "other"})], "'scale_range' with {'reference_tensor': 'other'}"),
        ([("scale_range", {"min_percentile": 99.0, "max_percentile": 1.0})], "'scale_range' with"),
        ([("clip", {"min_percentile": 1.0})], "'clip' with min_percentile"),
        ([("zero_mean_unit_variance", {"eps": -1.0})], "'zero_mean_unit_variance' with eps -1.0"),
        ([("scale_linear", {"gain": 0.1}), ("ensure_dtype", {"dtype": "uint8"})], "'ensure_dtype' with uint8"),
    ],
    ids=range(17),
)
def test_other_steps_are_refused_by_name(tmp_path: Path, steps: list[Step], said: str) -> None:
    with pytest.raises(ModelError, match=f"preprocesses images with .*{said}") as refused:
        describe(package(tmp_path, RAW, steps))
    assert "\n" not in str(refused.value)
    assert "in p.zip.toml beside it" in str(refused.value)


@pytest.mark.parametrize(
    ("network", "steps", "wanted"),
    [
        (unit(), [("sigmoid", {})], lambda x: 1 / (1 + np.exp(-x))),
        (unit(), [("sigmoid", {}), ("binarize", {"threshold": 0.5})], lambda x: x > 0),
        (nn.Sequential(unit(), nn.Sigmoid()), [], lambda x: 1 / (1 + np.exp(-x))),
        (nn.Sequential(unit(), nn.Sigmoid()), [("binarize", {"threshold": 0.5})], lambda x: x > 0),
    ],
    ids=range(4),
)
def test_outputs_are_postprocessed(tmp_path: Path, network: nn.Module, steps: list[Step], wanted: Callable[[Any], Any]) -> None:
    before: list[Step] = [("zero_mean_unit_variance", {})]
    path = package(tmp_path, wanted(applied(before)), before, steps, network)
    assert check_package(path).mismatches == 0
    assert not check_package(package(tmp_path, 1 - wanted(applied(before)).astype(np.float32), before, steps, network)).holds


def test_channels_that_exclude_one_another(tmp_path: Path) -> None:
    network = Padded(3)
    with torch.inference_mode():
        wanted = torch.softmax(network(torch.from_numpy(RAW.astype(np.float32))), 1).numpy()
    path = package(tmp_path, wanted, [], [("softmax", {"axis": "channel"})], network)
    assert check_package(path).holds
    assert len(describe(path)[0].classes) == 3
    path = package(tmp_path, wanted, [], [], nn.Sequential(network, nn.Softmax(dim=1)))
    assert check_package(path).holds
    assert check_package(state(path, "channel = 2")).values == RAW.size


# -- What a package states ------------------------------------------------------------------------------------------


def tolerances(**stated: Any) -> dict[str, Any]:
    return {"config": {"bioimageio": {"reproducibility_tolerance": [stated]}}}


def test_tolerances_are_those_of_the_package(tmp_path: Path) -> None:
    spoilt = RAW.astype(np.float32)
    spoilt[0, 0, 0, 0] += 1
    told = 'activation = "sigmoid logits"'
    found = check_package(state(package(tmp_path, spoilt), told))
    assert (found.holds, found.mismatches, found.difference) == (False, 1, 1)
    assert "1 of 1920 values differ by more than 0.001 + 0.001 x value (100 per million may)" in str(found)
    for stated, holds in (
        ({"absolute_tolerance": 2}, True),
        ({"relative_tolerance": 2.0}, True),
        ({"mismatched_elements_per_million": 600}, True),
        ({"absolute_tolerance": 2, "weights_formats": ["torchscript"]}, False),
        ({"absolute_tolerance": 2, "weights_formats": ["onnx"], "output_ids": ["out"]}, True),
        ({"absolute_tolerance": 2, "output_ids": ["other"]}, False),
    ):
        assert check_package(package(tmp_path, spoilt, **tolerances(**stated))).holds == holds


def test_not_a_number_is_never_the_same(tmp_path: Path) -> None:
    wanted = np.full(RAW.shape, np.nan, np.float32)
    assert not check_package(state(package(tmp_path, wanted), 'activation = "sigmoid logits"')).holds


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    def refused(path: Path, said: str) -> None:
        with pytest.raises(ModelError, match=said) as caught:
            check_package(state(path, 'activation = "sigmoid logits"'))
        assert "\n" not in str(caught.value)

    refused(
        package(tmp_path, RAW[..., :-1]), r"turns its test input \(1, 1, 40, 48\) into \(1, 1, 40, 48\), but its test output"
    )
    refused(package(tmp_path, np.array([{}], object)), "is not a readable array")
    bare: dict[str, Any] = {"inputs": [{"id": "raw"}], "outputs": [{"id": "out"}]}
    refused(package(tmp_path, RAW, **bare), "has no test tensors for its inputs")
    remote: dict[str, Any] = {"inputs": [{"id": "raw", "test_tensor": {"source": "https://somewhere.org/in.npy"}}]}
    refused(package(tmp_path, RAW, **remote), "outside of it: download the whole package")
    for source in ("../in.npy", "/in.npy"):
        refused(package(tmp_path, RAW, inputs=[{"id": "raw", "test_tensor": {"source": source}}]), "outside of it")
    lie = package(tmp_path, RAW, weights={"onnx": {"source": "w.onnx", "sha256": hashlib.sha256(b"").hexdigest()}})
    refused(lie, r"w.onnx .* has the SHA-256 .*, but its description says e3b0c44298")
    (tmp_path / "n.onnx").write_bytes((tmp_path / "w.onnx").read_bytes())
    refused(tmp_path / "n.onnx", "is not a BioImage.IO package")


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"inputs": [{"id": "a"}, {"id": "b"}]}, "has 2 inputs, but a volume is 1 input"),
        ({"inputs": [{"id": "a", "axes": "byxc"}]}, "the input of .* has the axes byxc, but a network has bcyx or bczyx"),
        ({"outputs": [{"id": "o", "axes": [AXES[0], {"type": "index"}]}]}, "the output of .* has the axes bi"),
        (
            {"outputs": [{"name": "o", "axes": "bcyx", "shape": {"reference_tensor": "raw", "scale": [1, 1, 0.5, 0.5]}}]},
            r"has other voxels than its input \(scale \[0.5, 0.5\]\)",
        ),
        (
            {"outputs": [{"id": "o", "axes": [AXES[0], AXES[1], {**AXES[2], "scale": 2.0}, {**AXES[3], "scale": 2.0}]}]},
            r"has other voxels than its input \(scale \[2.0, 2.0\]\)",
        ),
        (
            {"outputs": [{"name": "o", "axes": "bcyx", "shape": {"reference_tensor": "other", "scale": [1, 1, 1, 1]}}]},
            "depends on other, but its input is raw",
        ),
        (
            {"outputs": [{"id": "o", "axes": [*AXES[:3], {**AXES[3], "size": {"tensor_id": "other", "axis_id": "x"}}]}]},
            "depends on other, but its input is raw",
        ),
    ],
    ids=range(7),
)
def test_inputs_and_outputs_of_other_shapes_are_refused(tmp_path: Path, described: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        describe(package(tmp_path, RAW, **described))
    assert "\n" not in str(refused.value)
