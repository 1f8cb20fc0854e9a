"""Which library computes, and in which precision: torch anywhere, OpenVINO on CPUs; the lower ones where they are faster."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from emseg.errors import DeviceError
from emseg.model.device import Device, check_device
from emseg.model.foreign import ForeignModel, Kind, contract_of, is_foreign, open_onnx, read_foreign
from emseg.model.own import Imported, OwnModel, OwnPredictor
from emseg.specs.numerics import Backend, Precision

if TYPE_CHECKING:
    from emseg.model.adapted import AdaptedNetwork
    from emseg.model.file import ModelFile
    from emseg.model.onnx import OnnxPredictor
    from emseg.model.openvino_predictor import OpenVinoPredictor
    from emseg.model.predictor import TorchPredictor
    from emseg.model.unet import UNet

    SomePredictor = TorchPredictor | OpenVinoPredictor | OnnxPredictor | OwnPredictor

LIBRARIES: dict[Kind, Backend] = {"onnx": "openvino", "exported": "torch"}
"""What computes networks that emseg has not made."""


def default_backend(device: Device) -> Backend:
    """The fastest library that is installed here: OpenVINO on a CPU, if it is."""
    return "openvino" if device == "cpu" and find_spec("openvino") else "torch"


def low_precisions(device: Device) -> tuple[Precision, ...]:
    """Precisions below float32 that this hardware has arithmetic for, in the order in which they are to be tried.

    bfloat16 comes first: it holds any number that float32 does, while float16 overflows above 65504; on CPUs it is the only
    one, as OpenVINO would make an overflow in float16 a finite number in silence.

    Raises
    ------
    DeviceError
        If there is no such hardware.
    """
    import torch  # noqa: PLC0415  takes seconds

    check_device(device)
    if device == "cuda":
        capability = torch.cuda.get_device_capability()
        return ("bfloat16", "float16") if capability >= (8, 0) else ("float16",) if capability >= (7, 0) else ()
    has: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    return ("bfloat16",) if has.get("amx_bf16") or has.get("avx512_bf16") else ()


def backend_of(path: Path | Imported, device: Device) -> Backend:
    """The library that computes a model, if none is asked for; of a class of the user's own that means nothing."""
    if isinstance(path, Imported):
        return "torch"
    return LIBRARIES[read_foreign(path).kind] if is_foreign(path) else default_backend(device)


def open_predictor(
    model: ModelFile | ForeignModel | OwnModel, backend: Backend, precision: Precision, threads: int, device: Device
) -> SomePredictor:
    """A predictor with the weights of a model.

    Raises
    ------
    DeviceError
        If the library is not installed here, or does not compute on the device, or that not in this precision.
    """
    if isinstance(model, OwnModel):
        if (backend, precision, device) != ("torch", "float32", "cpu"):
            raise DeviceError(
                f"the predictor {model.name} computes as it likes, not with {backend} in {precision} on {device}: leave out "
                "--backend, --precision and --device"
            )
        return OwnPredictor(model, threads)
    if isinstance(model, ForeignModel):
        return _open_foreign(model, backend, precision, threads, device)
    if backend == "openvino" and device != "cpu":
        raise DeviceError(f"OpenVINO computes on CPUs, not on {device}: use --backend torch, or --device cpu")
    if precision != "float32" and precision not in (able := low_precisions(device)):
        raise DeviceError(
            f"predictors are to compute in {precision}, but the {'GPU' if device == 'cuda' else 'CPU'} here computes fast in "
            f"{' and '.join(('float32', *able))} alone: use --precision float32, or other hardware"
        )
    if backend == "torch":
        return _in_torch(model.network(), precision, threads, device)
    try:
        from emseg.model.openvino_predictor import OpenVinoPredictor  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError(
            f"the run computes with OpenVINO, which is not installed here ({error}): pip install 'emseg[openvino]', or begin "
            "another output with --backend torch"
        ) from error
    return OpenVinoPredictor(model, threads, precision)


def _in_torch(network: UNet | AdaptedNetwork, precision: Precision, threads: int, device: Device) -> TorchPredictor:
    from emseg.model.predictor import TYPES, CudaPredictor, TorchPredictor  # noqa: PLC0415  takes seconds to import

    network = network.to(TYPES[precision])
    return CudaPredictor(network, threads) if device == "cuda" else TorchPredictor(network, threads, device)


def _open_foreign(
    model: ForeignModel, backend: Backend, precision: Precision, threads: int, device: Device
) -> TorchPredictor | OnnxPredictor:
    """A predictor of a network that emseg has not made: each kind is computed by one library, in float32."""
    library, spec = LIBRARIES[model.kind], contract_of(model)
    if backend != library:
        raise DeviceError(
            f"{model.path} is computed by {library}, not by {backend}: leave out --backend, or begin another output"
        )
    if precision != "float32":
        raise DeviceError(f"{model.path} is computed in float32 alone, not in {precision}: leave out --precision")
    if model.kind == "exported":
        from emseg.model.adapted import AdaptedNetwork  # noqa: PLC0415
        from emseg.model.exported import read_exported  # noqa: PLC0415

        return _in_torch(AdaptedNetwork(read_exported(model.data, model.path)[0], spec), precision, threads, device)
    if device != "cpu":
        raise DeviceError(
            f"{model.path} is ONNX, which OpenVINO computes on CPUs, not on {device}: export it with torch.export"
        )
    from emseg.model.onnx import OnnxPredictor  # noqa: PLC0415

    return OnnxPredictor(open_onnx(model, threads), spec, threads)
