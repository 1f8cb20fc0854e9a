"""Which library computes: torch anywhere, OpenVINO on CPUs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from emseg.errors import DeviceError
from emseg.specs.numerics import Backend

if TYPE_CHECKING:
    from emseg.model.device import Device
    from emseg.model.file import ModelFile
    from emseg.model.openvino_predictor import OpenVinoPredictor
    from emseg.model.predictor import TorchPredictor


def default_backend(device: Device) -> Backend:
    """The fastest library that is installed here: OpenVINO on a CPU, if it is."""
    return "openvino" if device == "cpu" and find_spec("openvino") else "torch"


def open_predictor(model: ModelFile, backend: Backend, threads: int, device: Device) -> TorchPredictor | OpenVinoPredictor:
    """A predictor with the weights of a model file.

    Raises
    ------
    DeviceError
        If the library is not installed here, or does not compute on the device.
    """
    if backend == "torch":
        from emseg.model.predictor import TorchPredictor  # noqa: PLC0415  takes seconds to import

        return TorchPredictor(model.network(), threads, device)
    if device != "cpu":
        raise DeviceError(f"OpenVINO computes on CPUs, not on {device}: use --backend torch, or --device cpu")
    try:
        from emseg.model.openvino_predictor import OpenVinoPredictor  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError(
            f"the run computes with OpenVINO, which is not installed here ({error}): pip install 'emseg[openvino]', or begin "
            "another output with --backend torch"
        ) from error
    return OpenVinoPredictor(model, threads)
