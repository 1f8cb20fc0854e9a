"""Which library computes, and in which precision: torch anywhere, OpenVINO on CPUs; the lower ones where they are faster."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from emseg.errors import DeviceError
from emseg.model.device import Device, check_device
from emseg.specs.numerics import Backend, Precision

if TYPE_CHECKING:
    from emseg.model.file import ModelFile
    from emseg.model.openvino_predictor import OpenVinoPredictor
    from emseg.model.predictor import TorchPredictor


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


def open_predictor(
    model: ModelFile, backend: Backend, precision: Precision, threads: int, device: Device
) -> TorchPredictor | OpenVinoPredictor:
    """A predictor with the weights of a model file.

    Raises
    ------
    DeviceError
        If the library is not installed here, or does not compute on the device, or that not in this precision.
    """
    if backend == "openvino" and device != "cpu":
        raise DeviceError(f"OpenVINO computes on CPUs, not on {device}: use --backend torch, or --device cpu")
    if precision != "float32" and precision not in (able := low_precisions(device)):
        raise DeviceError(
            f"predictors are to compute in {precision}, but the {'GPU' if device == 'cuda' else 'CPU'} here computes fast in "
            f"{' and '.join(('float32', *able))} alone: use --precision float32, or other hardware"
        )
    if backend == "torch":
        from emseg.model.predictor import TYPES, CudaPredictor, TorchPredictor  # noqa: PLC0415  takes seconds to import

        network = model.network().to(TYPES[precision])
        return CudaPredictor(network, threads) if device == "cuda" else TorchPredictor(network, threads, device)
    try:
        from emseg.model.openvino_predictor import OpenVinoPredictor  # noqa: PLC0415
    except ImportError as error:
        raise DeviceError(
            f"the run computes with OpenVINO, which is not installed here ({error}): pip install 'emseg[openvino]', or begin "
            "another output with --backend torch"
        ) from error
    return OpenVinoPredictor(model, threads, precision)
