"""What decides the last bits of a prediction besides weights, geometry and tile shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

Backend = Literal["torch", "openvino"]
"""A library that computes."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """Runs agree to the last byte if these agree; else they agree in the labels but for ties."""

    backend: str
    """Library and version that computes, ``torch 2.13.0+cpu``."""
    device: str
    """Instruction set of the CPU, or model of the GPU."""
    precision: str
    """Type of the activations, ``float32``."""
    threads: int
    """Threads that one predictor computes with."""

    canary: str
    """SHA-256 of the prediction of one fixed tile, see `emseg.canary`."""

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision} with {self.threads} threads, canary {self.canary[:12]}"

    @property
    def library(self) -> Backend:
        """The backend without its version; torch for one that is not known."""
        name = self.backend.partition(" ")[0]
        return cast("Backend", name) if name in get_args(Backend) else "torch"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The numerics that `to_json` wrote."""
        return cls(
            *(str(data["backend"]), str(data["device"]), str(data["precision"]), int(data["threads"]), str(data["canary"]))
        )
