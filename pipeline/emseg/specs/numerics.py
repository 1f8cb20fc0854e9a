"""What decides the last bits of a prediction besides weights, geometry and tile shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

Backend = Literal["torch", "openvino"]
"""A library that computes."""
Precision = Literal["float32", "bfloat16", "float16"]
"""Type of the activations; sums are in float32 always."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far predictions in a low precision are from those in float32, on a sample of the volume."""

    agreement: float
    """Share of the voxels that get the same label."""
    largest_difference: float
    """Between the probabilities of a class at a voxel."""
    voxels: int
    """Voxels of the sample."""

    def __str__(self) -> str:
        return (
            f"{self.agreement:.2%} of {self.voxels} voxels get the label of float32, "
            f"probabilities differ by {self.largest_difference:.2g} at most"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The accuracy that `dataclasses.asdict` made."""
        return cls(float(data["agreement"]), float(data["largest_difference"]), int(data["voxels"]))


@dataclass(frozen=True, slots=True)
class Numerics:
    """Runs agree to the last byte if these agree; else they agree in the labels but for ties."""

    backend: str
    """Library and version that computes, ``torch 2.13.0+cpu``."""
    device: str
    """Instruction set of the CPU, or model of the GPU."""
    precision: Precision
    """Type of the activations."""
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
            backend=str(data["backend"]),
            device=str(data["device"]),
            precision=data["precision"],
            threads=int(data["threads"]),
            canary=str(data["canary"]),
        )
