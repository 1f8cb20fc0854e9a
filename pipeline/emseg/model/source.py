"""The one place that knows of which kinds models are: emseg's own files, those of others, and classes of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from emseg.errors import ModelError
from emseg.model.bundled import resolve_model
from emseg.model.foreign import ForeignModel, contract_of, is_foreign, read_foreign
from emseg.model.header import model_digest, read_header
from emseg.model.own import Imported, OwnModel, contract_of_own, read_own
from emseg.specs.contract import Contract
from emseg.specs.network import NetworkSpec

if TYPE_CHECKING:
    from emseg.model.file import ModelFile

ModelPlace: TypeAlias = Path | Imported


def model_at(model: str | Path | None, predictor: str | None = None) -> ModelPlace:
    """Where a model is: a file, a bundled one by its name or the default one, or a class by the name of its module and its own.

    Raises
    ------
    ModelError
        If it is none of these, or two are asked for.
    """
    if predictor is None:
        return resolve_model(model)
    if model is not None:
        raise ModelError(f"both the model {model} and the predictor {predictor} are asked for: leave one of them out")
    return Imported(predictor)


def describe(path: ModelPlace) -> tuple[NetworkSpec, dict[str, str]]:
    """What a model is, and where it comes from; of one that emseg has not written, that is found by experiment.

    Raises
    ------
    ModelError
        If it cannot be read, or is of a kind that is not taken.
    """
    if isinstance(path, Imported):
        own = read_own(path)
        return contract_of_own(own), own.card
    if not is_foreign(path):
        return read_header(path)
    model = read_foreign(path)
    return contract_of(model), model.card


def card_of(path: ModelPlace) -> dict[str, str]:
    """Where a model comes from that emseg has not written.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    return read_own(path).card if isinstance(path, Imported) else read_foreign(path).card


def title_of(path: ModelPlace) -> str | None:
    """Name and version of a class of the user's own; None for a model in a file.

    Raises
    ------
    ModelError
        If it cannot be imported.
    """
    return read_own(path).title if isinstance(path, Imported) else None


def digest_of(path: ModelPlace) -> str:
    """SHA-256 of a model, and of what is told beside it, in hexadecimal.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    if isinstance(path, Imported):
        return read_own(path).digest
    return read_foreign(path).digest if is_foreign(path) else model_digest(path)


def load(path: ModelPlace, spec: NetworkSpec) -> ModelFile | ForeignModel | OwnModel:
    """A model, read once and checked; `spec` is what `describe` has found.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    told = spec if isinstance(spec, Contract) else None
    if isinstance(path, Imported):
        return read_own(path, told)
    if is_foreign(path):
        return read_foreign(path, told)
    from emseg.model.file import load_model  # noqa: PLC0415  torch takes seconds to import

    return load_model(path)
