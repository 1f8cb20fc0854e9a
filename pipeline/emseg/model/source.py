"""The one place that knows of which kinds models are: emseg's own files, and those of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emseg.model.foreign import ForeignModel, contract_of, is_foreign, read_foreign
from emseg.model.header import model_digest, read_header
from emseg.specs.contract import Contract
from emseg.specs.network import NetworkSpec

if TYPE_CHECKING:
    from emseg.model.file import ModelFile


def describe(path: Path) -> tuple[NetworkSpec, dict[str, str]]:
    """What a model is, and where it comes from; of one that emseg has not written, that is found by experiment.

    Raises
    ------
    ModelError
        If it cannot be read, or is of a kind that is not taken.
    """
    if not is_foreign(path):
        return read_header(path)
    model = read_foreign(path)
    return contract_of(model), model.card


def digest_of(path: Path) -> str:
    """SHA-256 of a model, and of what is told beside it, in hexadecimal.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    return read_foreign(path).digest if is_foreign(path) else model_digest(path)


def load(path: Path, spec: NetworkSpec) -> ModelFile | ForeignModel:
    """A model, read once and checked; `spec` is what `describe` has found.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    if is_foreign(path):
        return read_foreign(path, spec if isinstance(spec, Contract) else None)
    from emseg.model.file import load_model  # noqa: PLC0415  torch takes seconds to import

    return load_model(path)
