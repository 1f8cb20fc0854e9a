"""Choose the library and precision of predictors: torch anywhere, OpenVINO on CPUs, low precision where it is faster."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from emseg_core.errors import DeviceError
from emseg_core.installation import install_hint
from emseg_core.model.base_predictor import BasePredictor
from emseg_core.model.cpu import has_fast_bfloat16
from emseg_core.model.device import Device, check_device
from emseg_core.model.ensemble import EnsembleModel, EnsemblePlace, EnsemblePredictor
from emseg_core.model.external_model import (
    ExternalModel,
    Kind,
    contract_of,
    is_external,
    open_exported,
    open_onnx,
    read_external,
)
from emseg_core.model.python_predictor import ImportPath, PythonModel, PythonPredictor
from emseg_core.specs.numerics import Backend, Precision

if TYPE_CHECKING:
    from emseg_core.model.adapter import AdaptedNetwork
    from emseg_core.model.file import ModelFile
    from emseg_core.model.unet import UNet

EXTERNAL_BACKENDS: dict[Kind, Backend] = {"onnx": "openvino", "exported": "torch"}
"""Library that runs each kind of external model."""


def default_backend(device: Device) -> Backend:
    """Return the fastest library installed here for a device.

    Parameters
    ----------
    device
        Device on which the network runs.

    Returns
    -------
    Backend
        ``openvino`` on a CPU if it is installed, else ``torch``.
    """
    return "openvino" if device == "cpu" and find_spec("openvino") else "torch"


def low_precisions(device: Device) -> tuple[Precision, ...]:
    """List the precisions below float32 for which this hardware has fast arithmetic, in the order to try them.

    bfloat16 comes first because it has the range of float32, while float16 overflows above 65504. On CPUs it is the only
    one, as OpenVINO silently turns an overflow in float16 into a finite number.

    Parameters
    ----------
    device
        Device on which the network runs.

    Returns
    -------
    tuple of Precision
        Any of ``bfloat16`` and ``float16``; empty if float32 is the only choice.

    Raises
    ------
    DeviceError
        If torch cannot use the device here.
    """
    check_device(device)
    if device == "cuda":
        import torch  # takes seconds

        capability = torch.cuda.get_device_capability()
        return ("bfloat16", "float16") if capability >= (8, 0) else ("float16",) if capability >= (7, 0) else ()
    return ("bfloat16",) if has_fast_bfloat16() else ()


def backend_of(path: Path | ImportPath | EnsemblePlace, device: Device) -> Backend:
    """Return the default library for a model; for a predictor class, which computes as it likes, it has no effect.

    Parameters
    ----------
    path
        Model file, a predictor class, or the files of an ensemble.
    device
        Device on which the network runs.

    Returns
    -------
    Backend
        The only library that runs an external model, else that of `default_backend`; of an ensemble, that of its members that
        several libraries can run, or else of its first member.

    Raises
    ------
    ModelError
        If an external model cannot be read.
    """
    if isinstance(path, ImportPath):
        return "torch"
    if isinstance(path, EnsemblePlace):
        free = [member for member in path.paths if not is_external(member)]
        return backend_of((free or path.paths)[0], device)
    return EXTERNAL_BACKENDS[read_external(path).kind] if is_external(path) else default_backend(device)


def open_predictor(
    model: ModelFile | ExternalModel | PythonModel | EnsembleModel,
    backend: Backend,
    precision: Precision,
    threads: int,
    device: Device,
) -> BasePredictor:
    """Open a predictor for a model.

    Parameters
    ----------
    model
        The model.
    backend
        Library that runs it; an external member of an ensemble is run by the only one that can.
    precision
        Type of the activations.
    threads
        Number of threads that run it on a CPU.
    device
        Device that runs it.

    Returns
    -------
    TorchPredictor, OpenVinoPredictor, OnnxPredictor, PythonPredictor or EnsemblePredictor
        The predictor.

    Raises
    ------
    DeviceError
        If the library is not installed here, does not run on the device, or the device does not compute in the precision.
    """
    if isinstance(model, EnsembleModel):
        return _open_ensemble(model, backend, precision, threads, device)
    if isinstance(model, PythonModel):
        if (backend, precision, device) != ("torch", "float32", "cpu"):
            raise DeviceError(
                f"the predictor {model.name} chooses its own library, so it does not run with {backend} in {precision} on "
                f"{device}: leave out --backend, --precision and --device"
            )
        return PythonPredictor(model, threads)
    if isinstance(model, ExternalModel):
        return _open_external(model, backend, precision, threads, device)
    if backend == "openvino" and device != "cpu":
        raise DeviceError(f"OpenVINO runs on CPUs, not on {device}: use --backend torch, or --device cpu")
    _check_precision(precision, device)
    if backend == "torch":
        from emseg_core.model.adapter import DTYPES  # takes seconds to import

        return _in_torch(model.network().to(DTYPES[precision]), threads, device)
    try:
        from emseg_core.model.openvino_predictor import OpenVinoPredictor
    except ImportError as error:
        raise DeviceError(
            f"the run uses OpenVINO, which is not installed here ({error}): {install_hint('openvino')}; or start another "
            "output with --backend torch"
        ) from error
    return OpenVinoPredictor(model, threads, precision)


def _check_precision(precision: Precision, device: Device) -> None:
    """Check that a device has fast arithmetic for a precision."""
    if precision != "float32" and precision not in (able := low_precisions(device)):
        raise DeviceError(
            f"predictors should compute in {precision}, but the {'GPU' if device == 'cuda' else 'CPU'} here is fast only in "
            f"{' and '.join(('float32', *able))}: use --precision float32, or other hardware"
        )


def _in_torch(network: UNet | AdaptedNetwork, threads: int, device: Device) -> BasePredictor:
    """Open a predictor that runs a network in torch."""
    from emseg_core.model.predictor import CudaPredictor, TorchPredictor  # takes seconds to import

    return CudaPredictor(network, threads) if device == "cuda" else TorchPredictor(network, threads, device)


def _open_ensemble(model: EnsembleModel, backend: Backend, precision: Precision, threads: int, device: Device) -> BasePredictor:
    """Open a predictor for an ensemble, whose external members choose their library."""
    libraries = [EXTERNAL_BACKENDS[member.kind] if isinstance(member, ExternalModel) else backend for member in model.members]
    if backend not in libraries:
        raise DeviceError(
            f"the models run in {' and '.join(dict.fromkeys(libraries))}, none of them in {backend}: leave out --backend"
        )
    opened = [
        open_predictor(member, library, precision, threads, device)
        for member, library in zip(model.members, libraries, strict=True)
    ]
    return EnsemblePredictor(opened, model.spec, backend, precision, threads)


def _open_external(model: ExternalModel, backend: Backend, precision: Precision, threads: int, device: Device) -> BasePredictor:
    """Open a predictor for an external model; each kind is run by one library."""
    library, spec = EXTERNAL_BACKENDS[model.kind], contract_of(model)
    if backend != library:
        raise DeviceError(f"{model.path} runs in {library}, not in {backend}: leave out --backend, or start another output")
    _check_precision(precision, device)
    if model.kind == "exported":
        from emseg_core.model.adapter import AdaptedNetwork

        return _in_torch(AdaptedNetwork(open_exported(model)[0], spec, precision), threads, device)
    if device != "cpu":
        raise DeviceError(
            f"{model.path} is an ONNX file, which OpenVINO runs on CPUs, not on {device}: export it with torch.export"
        )
    from emseg_core.model.onnx import OnnxPredictor

    return OnnxPredictor(open_onnx(model, threads, precision), spec, threads, precision)
