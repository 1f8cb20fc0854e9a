"""Write a trained network in formats that other tools run: ONNX, programs of torch, and BioImage.IO packages.

What a format cannot say is written to ``TARGET.toml`` beside it, as `emseg_core.model.external_model` reads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn

from emseg_core.errors import ModelError, OutputError
from emseg_core.installation import install_hint
from emseg_core.model.external_model import is_external
from emseg_core.model.file import ModelFile, load_model, write_file
from emseg_core.model.package import DESCRIPTIONS
from emseg_core.model.unet import UNet
from emseg_core.normalise import normalised

SUFFIXES = (".onnx", ".pt2", ".zip")
"""Suffixes of targets; a target without one is the folder of a package."""
OPSET = 17
"""Version of the ONNX operators."""
EPS = 1e-12
"""What a package adds to the deviation, which must be more than 0 and is not to change a value."""
PAPER = {
    "text": "Ronneberger, Fischer and Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation",
    "doi": "10.1007/978-3-319-24574-4_28",
}
"""Origin of the architecture, since a package must cite something."""


class ImageNetwork(nn.Module):
    """Wrapper that gives a planar network images ``(n, 1, y, x)``, as other tools do.

    Parameters
    ----------
    network
        The network.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network, self.planar = network, network.spec.planar

    def forward(self, image: Tensor) -> Tensor:
        """Compute logits.

        Parameters
        ----------
        image
            Normalised grey values, ``(n, 1, y, x)``, or ``(n, 1, z, y, x)`` if the network is not planar.

        Returns
        -------
        Tensor
            Logits, with as many axes.
        """
        logits: Tensor = self.network(image[:, :, None])[:, :, 0] if self.planar else self.network(image)
        return logits


def export_model(source: Path, target: Path, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write one of emseg's own networks in a format of other tools.

    Parameters
    ----------
    source
        The model file.
    target
        What to write: an ONNX file (``.onnx``), a program of torch (``.pt2``), or a BioImage.IO package (``.zip``, or a
        folder, which has no suffix).
    overwrite
        Replace an existing target.

    Returns
    -------
    tuple of Path
        The target, and the file with settings beside it if there is one.

    Raises
    ------
    ModelError
        If the model is not one of emseg's own, cannot be read, or cannot be described in these formats.
    OutputError
        If the target exists, has an unknown suffix, or cannot be written.
    """
    suffix, beside = target.suffix.lower(), target.with_name(f"{target.name}.toml")
    if suffix not in (*SUFFIXES, ""):
        raise OutputError(
            f"{target} has the unknown ending {target.suffix}: use {', '.join(SUFFIXES)}, or none for the folder of a package"
        )
    if there := [path for path in (target, beside) if path.exists()]:
        if not overwrite:
            raise OutputError(f"{there[0]} exists already: choose another target, or replace it with --overwrite")
        if target.is_dir() and (suffix or not any((target / name).is_file() for name in DESCRIPTIONS)):
            raise OutputError(f"{target} is a folder, but not that of a package, and is not replaced: choose another target")
        if target.is_file() and not suffix:
            raise OutputError(f"{target} is a file, but a target without ending is a folder: choose another target")
    if is_external(source):
        raise ModelError(f"{source} is not one of emseg's own networks, which alone are exported: name a .safetensors file")
    model = load_model(source)
    if model.spec.channels != 1 or len(model.spec.classes) < 2:
        raise ModelError(
            f"{source} has {model.spec.channels} input channels and {len(model.spec.classes)} classes, but only networks of 1 "
            "channel and at least 2 classes can be described for other tools: choose another model"
        )
    if len(model.spec.heads) > 1:
        names = ", ".join(head.name for head in model.spec.heads)
        raise ModelError(
            f"{source} has the heads {names}, but only networks of classes alone are exported: choose another model"
        )
    settings: dict[str, Any] = {"normalise": _scope(model)}
    if "voxel_size" in model.card:
        settings["voxel_size"] = model.card["voxel_size"]
    if suffix in (".onnx", ".pt2"):
        settings = {"activation": "logits", "classes": list(model.spec.classes), **settings}
        data = _onnx(model, target) if suffix == ".onnx" else _program(model)
        _write_settings(beside, settings)
        write_file(target, data)
    else:
        if settings["normalise"] == "volume":
            del settings["normalise"]  # the package says it
        files = _package(model, target)
        _write_settings(beside, settings)
        if suffix:
            write_file(target, _zipped(files))
        else:
            _write_folder(target, files)
    return (target, beside) if settings else (target,)


def _scope(model: ModelFile) -> str:
    """Return what the network is normalised over, as a run takes it."""
    return "slice" if model.card.get("normalise") == "slice" else "volume"


# -- Networks -------------------------------------------------------------------------------------------------------


def _shape(model: ModelFile, least: int) -> tuple[int, ...]:
    """Return the shape of the smallest input that gives at least so many voxels along each axis."""
    tile = model.spec.tile_for((1 if model.spec.planar else least, least, least))
    return (1, 1, *tile[1 if model.spec.planar else 0 :])


def _lattice(model: ModelFile) -> tuple[int, ...]:
    """Return the lattice along the axes of the input."""
    return model.spec.lattice[1 if model.spec.planar else 0 :]


def _onnx(model: ModelFile, target: Path) -> bytes:
    """Export as ONNX, with the weights in the file."""
    shape = _shape(model, 8)
    lengths = {axis: "zyx"[axis - len(shape)] for axis in range(2, len(shape))}
    try:
        with warnings.catch_warnings(), torch.inference_mode(), tempfile.TemporaryDirectory() as made:
            warnings.simplefilter("ignore")  # the newer exporter needs a package more and is slower, this one is deprecated
            torch.onnx.export(
                ImageNetwork(model.network()).eval(),
                (torch.zeros(shape),),
                file := Path(made) / "weights.onnx",
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["prediction"],
                dynamic_axes={"image": lengths, "prediction": lengths},
            )
            return file.read_bytes()
    except ImportError as error:
        raise ModelError(f"{target} needs more packages to be written ({error}): {install_hint('openvino')}") from error


def _program(model: ModelFile) -> bytes:
    """Export as a program of torch; its lengths are those of valid tiles."""
    shape, file, lengths = _shape(model, 8), io.BytesIO(), {}
    for axis, (length, least, step) in enumerate(zip(shape[2:], _shape(model, 1)[2:], _lattice(model), strict=True)):
        steps = torch.export.Dim(f"steps{axis}", min=least // step + 1)  # torch treats results of one voxel as a special case
        lengths[axis + 2] = steps if step == 1 else step * steps + length % step if length % step else step * steps
    example = torch.zeros(shape[:2] + tuple(length + step for length, step in zip(shape[2:], _lattice(model), strict=True)))
    torch.export.save(torch.export.export(ImageNetwork(model.network()).eval(), (example,), dynamic_shapes=(lengths,)), file)
    return file.getvalue()


# -- Packages -------------------------------------------------------------------------------------------------------


def _package(model: ModelFile, target: Path) -> dict[str, bytes]:
    """Return the files of a package, by their names."""
    network = _onnx(model, target)
    image = np.random.default_rng(0).integers(0, 256, _shape(model, 8)).astype(np.float32)
    files = {"weights.onnx": network, "input.npy": _array(image), "output.npy": _array(_probabilities(model, image))}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    described = yaml.safe_dump(_described(model, target, digests), sort_keys=False, allow_unicode=True)
    return {DESCRIPTIONS[0]: described.encode(), **files}


def _probabilities(model: ModelFile, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute what the package gives for a test image."""
    slices = image[0, 0] if image.ndim == 5 else image[0]
    axes = (1, 2) if _scope(model) == "slice" else None
    mean, deviation = (
        np.broadcast_to(numbers, len(slices)).astype(np.float32)
        for numbers in (slices.mean(axis=axes, dtype=np.float64), slices.std(axis=axes, dtype=np.float64))
    )
    ready = torch.from_numpy(normalised(slices, mean, deviation)).reshape(image.shape)
    with torch.inference_mode():
        array: NDArray[np.float32] = ImageNetwork(model.network()).eval()(ready).softmax(dim=1).numpy()
    return array


def _described(model: ModelFile, target: Path, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return the description of a package in format 0.5."""
    spec, card = model.spec, model.card
    named = "yx" if spec.planar else "zyx"
    sizes = zip(named, _shape(model, 1)[2:], _lattice(model), spec.context[-len(named) :], strict=True)
    inputs, outputs = [], []
    for axis, least, step, context in sizes:
        space = {"type": "space", "id": axis}
        inputs.append({**space, "size": {"min": least, "step": step}})
        outputs.append({**space, "size": {"tensor_id": "image", "axis_id": axis, "offset": -2 * context}})
    over = ["channel", *(named if _scope(model) == "volume" else "yx")]
    batch = {"type": "batch", "size": 1}
    name = re.sub(r"[^A-Za-z0-9_ ()-]", "-", f"emseg {card.get('name') or target.stem}")[:100].rstrip()
    about = "; ".join(
        f"{key}: {card[key]}" for key in ("data", "attribution", "licence", "voxel_size", "scores") if key in card
    )
    return {
        "type": "model",
        "format_version": "0.5.4",
        "name": name,
        "description": f"{spec.kind}, trained with emseg. {about}"[:1000].rstrip(),
        "authors": [],
        "cite": [PAPER],
        "tags": ["electron-microscopy", "segmentation", "unet"],
        "inputs": [
            {
                "id": "image",
                "axes": [batch, {"type": "channel", "channel_names": ["grey"]}, *inputs],
                "test_tensor": {"source": "input.npy", "sha256": digests["input.npy"]},
                "data": {"type": "float32"},
                "preprocessing": [{"id": "zero_mean_unit_variance", "kwargs": {"axes": over, "eps": EPS}}],
            }
        ],
        "outputs": [
            {
                "id": "prediction",
                "axes": [batch, {"type": "channel", "channel_names": list(spec.classes)}, *outputs],
                "test_tensor": {"source": "output.npy", "sha256": digests["output.npy"]},
                "data": {"type": "float32"},
                "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
            }
        ],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": digests["weights.onnx"], "opset_version": OPSET}},
    }


def _array(values: NDArray[Any]) -> bytes:
    """Return an array in NumPy's format."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(values), allow_pickle=False)
    return file.getvalue()


# -- Files ----------------------------------------------------------------------------------------------------------


def _write_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings beside a network; without any, remove those of a target that is replaced."""
    if settings:  # text and lists of text are written alike in JSON and TOML
        lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in settings.items())
        write_file(beside, "".join(lines).encode())
    else:
        with suppress(FileNotFoundError):
            beside.unlink()


def _zipped(files: Mapping[str, bytes]) -> bytes:
    """Return a zip file, the same for the same files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return data.getvalue()


def _write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder beside its place, and move it there when it is complete."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
            unfinished = Path(made) / "new"
            unfinished.mkdir()
            for name, data in files.items():
                (unfinished / name).write_bytes(data)
            if target.exists():
                shutil.move(target, Path(made) / "old")
            unfinished.rename(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}): check its folder and the free disk space") from error
