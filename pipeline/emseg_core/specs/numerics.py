"""Everything that decides the last bits of a prediction, besides weights, geometry and tile shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, cast, get_args

Backend = Literal["torch", "openvino"]
"""Library that computes."""
Precision = Literal["float32", "bfloat16", "float16"]
"""Type of the activations; sums are always in float32."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of a lower precision relative to float32, on a sample of the volume."""

    agreement: float
    """Share of voxels with the same labels."""
    largest_difference: float
    """Largest difference between the probabilities of a class at a voxel."""
    voxels: int
    """Number of voxels in the sample."""

    def __str__(self) -> str:
        return (
            f"{self.agreement:.2%} of {self.voxels} voxels get the label of float32, "
            f"probabilities differ by {self.largest_difference:.2g} at most"
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the accuracy that `dataclasses.asdict` wrote."""
        return cls(float(data["agreement"]), float(data["largest_difference"]), int(data["voxels"]))


@dataclass(frozen=True, slots=True)
class Numerics:
    """Numerical environment of a run. Runs agree to the last byte if it is equal, otherwise in the labels except for ties."""

    backend: str
    """Library and version, such as ``torch 2.13.0+cpu``."""
    device: str
    """Instruction set of the CPU, or model of the GPU."""
    precision: Precision
    """Type of the activations."""
    threads: int
    """Threads per predictor."""

    canary: str
    """SHA-256 of the prediction of a fixed tile, see `emseg_core.canary`."""

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision} with {self.threads} threads, canary {self.canary[:12]}"

    @property
    def library(self) -> Backend:
        """The backend without its version; torch if the backend is unknown."""
        name = self.backend.partition(" ")[0]
        return cast("Backend", name) if name in get_args(Backend) else "torch"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the numerics that `to_json` wrote."""
        return cls(
            backend=str(data["backend"]),
            device=str(data["device"]),
            precision=data["precision"],
            threads=int(data["threads"]),
            canary=str(data["canary"]),
        )
