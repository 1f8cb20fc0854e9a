"""Find and load models of all kinds: emseg's own files, external networks, classes written in Python, and ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from emseg_core.errors import ModelError
from emseg_core.model.bundled import resolve_model
from emseg_core.model.ensemble import EnsembleModel, EnsemblePlace, ensemble_card, ensemble_digest
from emseg_core.model.external_model import ExternalModel, contract_of, is_external, norms_refusal, read_external
from emseg_core.model.header import model_digest, read_header
from emseg_core.model.python_predictor import ImportPath, PythonModel, import_model, python_contract
from emseg_core.specs.augmented import without_margin
from emseg_core.specs.contract import Contract
from emseg_core.specs.ensemble import EnsembleSpec
from emseg_core.specs.network import NetworkSpec

if TYPE_CHECKING:
    from emseg_core.model.file import ModelFile

SingleModel: TypeAlias = str | Path
ModelPlace: TypeAlias = Path | ImportPath | EnsemblePlace


def locate_model(model: SingleModel | Sequence[SingleModel] | None, predictor: str | None = None) -> ModelPlace:
    """Find a model.

    Parameters
    ----------
    model
        Path of a file, or the name of a bundled model; None selects the default one. Several make an ensemble.
    predictor
        A predictor class, as ``module:Class``, in place of a model.

    Returns
    -------
    Path, ImportPath or EnsemblePlace
        The file, the name of the class, or several files.

    Raises
    ------
    ModelError
        If there is no such model, the name is not of that form, or both are given.
    """
    if predictor is None:
        if model is None or isinstance(model, str | Path):
            return resolve_model(model)
        paths = tuple(map(resolve_model, model))
        return EnsemblePlace(paths) if len(paths) > 1 else resolve_model(*paths)
    if model is not None:
        raise ModelError(f"both the model {model} and the predictor {predictor} are given: leave out one of them")
    return ImportPath(predictor)


def files_of(place: ModelPlace) -> Path | tuple[Path, ...] | None:
    """Return what `locate_model` takes to find the same files.

    Parameters
    ----------
    place
        Place of the model.

    Returns
    -------
    Path, tuple of Path or None
        The file, or those of an ensemble; None for a predictor class.
    """
    if isinstance(place, EnsemblePlace):
        return place.paths
    return place if isinstance(place, Path) else None


def describe(path: ModelPlace) -> tuple[NetworkSpec, dict[str, str]]:
    """Describe a model; the behaviour of external networks and predictor classes is measured by running them.

    Parameters
    ----------
    path
        Place of the model.

    Returns
    -------
    spec : NetworkSpec
        The network.
    card : dict of str to str
        Origin of the model.

    Raises
    ------
    ModelError
        If it cannot be read, or is of a kind that is not supported.
    """
    if isinstance(path, ImportPath):
        imported = import_model(path)
        return python_contract(imported), imported.card
    if isinstance(path, EnsemblePlace):
        specs, cards = zip(*map(describe, path.paths), strict=True)
        return EnsembleSpec(specs), ensemble_card(cards)
    if not is_external(path):
        return read_header(path)
    model = read_external(path)
    return contract_of(model), model.card


def freezable(path: ModelPlace) -> ExternalModel:
    """Read a network of a kind whose normalisations can be frozen.

    Parameters
    ----------
    path
        Place of the network.

    Returns
    -------
    ExternalModel
        The network.

    Raises
    ------
    ModelError
        If it is a model of emseg's own, a predictor class, an ensemble, or takes several input channels.
    """
    if not isinstance(path, Path) or not is_external(path):
        raise norms_refusal(path.name if isinstance(path, Path) else str(path))
    model = read_external(path)
    if "inputs" in model.settings:
        raise ModelError(
            f"{path} takes several input channels, and norms of such networks cannot be frozen yet: leave out --norms frozen"
        )
    return model


def card_of(path: ModelPlace) -> dict[str, str]:
    """Read the card of a model.

    Parameters
    ----------
    path
        Place of the model.

    Returns
    -------
    dict of str to str
        Origin of the model.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    if isinstance(path, EnsemblePlace):
        return ensemble_card(cards_of(path))
    if isinstance(path, ImportPath):
        return import_model(path).card
    return read_external(path).card if is_external(path) else read_header(path)[1]


def cards_of(path: EnsemblePlace) -> list[dict[str, str]]:
    """Read the card of each member of an ensemble.

    Parameters
    ----------
    path
        Place of the members.

    Returns
    -------
    list of dict
        Origins of the models.

    Raises
    ------
    ModelError
        If one cannot be read.
    """
    return [card_of(member) for member in path.paths]


def title_of(path: ModelPlace) -> str | None:
    """Return the name and version of a predictor class.

    Parameters
    ----------
    path
        Place of the model.

    Returns
    -------
    str or None
        ``module:Class version``; None for a model in a file.

    Raises
    ------
    ModelError
        If the class cannot be imported.
    """
    return import_model(path).title if isinstance(path, ImportPath) else None


def digest_of(path: ModelPlace) -> str:
    """Compute the SHA-256 of a model and its settings.

    Parameters
    ----------
    path
        Place of the model.

    Returns
    -------
    str
        The digest in hexadecimal.

    Raises
    ------
    ModelError
        If the model cannot be read.
    """
    if isinstance(path, ImportPath):
        return import_model(path).digest
    if isinstance(path, EnsemblePlace):
        return ensemble_digest([digest_of(member) for member in path.paths])
    return read_external(path).digest if is_external(path) else model_digest(path)


def load(path: ModelPlace, spec: NetworkSpec) -> ModelFile | ExternalModel | PythonModel | EnsembleModel:
    """Read and check a model.

    Parameters
    ----------
    path
        The model.
    spec
        The network, as returned by `describe`, so that its behaviour is not measured again.

    Returns
    -------
    ModelFile, ExternalModel, PythonModel or EnsembleModel
        The model in memory.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    spec = without_margin(spec)
    if isinstance(path, EnsemblePlace):
        if not isinstance(spec, EnsembleSpec) or len(spec.members) != len(path.paths):
            raise ModelError(f"{len(path.paths)} models are given, but the run has another number: give those of the run")
        return EnsembleModel(tuple(map(_load_file, path.paths, spec.members)), spec)
    if isinstance(path, ImportPath):
        return import_model(path, spec if isinstance(spec, Contract) else None)
    return _load_file(path, spec)


def _load_file(path: Path, spec: NetworkSpec) -> ModelFile | ExternalModel:
    """Read and check a model in a file."""
    if is_external(path):
        return read_external(path, spec if isinstance(spec, Contract) else None)
    from emseg_core.model.file import load_model  # torch takes seconds to import

    return load_model(path)
