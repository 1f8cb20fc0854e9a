"""Find and load models of all kinds: emseg's own model files, external networks, and predictor classes written in Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from emseg_core.errors import ModelError
from emseg_core.model.bundled import resolve_model
from emseg_core.model.external_model import ExternalModel, contract_of, is_external, norms_refusal, read_external
from emseg_core.model.header import model_digest, read_header
from emseg_core.model.python_predictor import ImportPath, PythonModel, import_model, python_contract
from emseg_core.normalise import Normalisation
from emseg_core.ports import VolumeReader
from emseg_core.specs.contract import Contract
from emseg_core.specs.network import NetworkSpec

if TYPE_CHECKING:
    from emseg_core.model.file import ModelFile

ModelPlace: TypeAlias = Path | ImportPath


def locate_model(model: str | Path | None, predictor: str | None = None) -> ModelPlace:
    """Find a model.

    Parameters
    ----------
    model
        Path of a file, or the name of a bundled model; None selects the default one.
    predictor
        A predictor class, as ``module:Class``, in place of a model.

    Returns
    -------
    Path or ImportPath
        The file, or the name of the class.

    Raises
    ------
    ModelError
        If there is no such model, the name is not of that form, or both are given.
    """
    if predictor is None:
        return resolve_model(model)
    if model is not None:
        raise ModelError(f"both the model {model} and the predictor {predictor} are given: leave out one of them")
    return ImportPath(predictor)


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
    if not is_external(path):
        return read_header(path)
    model = read_external(path)
    return contract_of(model), model.card


def describe_frozen(
    path: ModelPlace, volume: VolumeReader, normalisation: Normalisation, mask: VolumeReader | None
) -> NetworkSpec:
    """Describe a network whose normalisations over space use statistics of a volume; see `emseg_core.model.frozen_norms`.

    Parameters
    ----------
    path
        Place of the network.
    volume
        The volume.
    normalisation
        How its grey values are normalised.
    mask
        Where it is nonzero, statistics are measured; None for the whole volume.

    Returns
    -------
    NetworkSpec
        The network, with its statistics.

    Raises
    ------
    InputError
        If it has nothing to freeze, or no tile of the volume can be computed.
    """
    from emseg_core.model.frozen_norms import freeze  # torch takes seconds to import

    return contract_of(freeze(freezable(path), volume, normalisation, mask))


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
        If it is a model of emseg's own or a predictor class.
    """
    if isinstance(path, ImportPath) or not is_external(path):
        raise norms_refusal(path.name if isinstance(path, Path) else str(path))
    return read_external(path)


def card_of(path: ModelPlace) -> dict[str, str]:
    """Read the card of an external network or a predictor class.

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
    return import_model(path).card if isinstance(path, ImportPath) else read_external(path).card


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
    return read_external(path).digest if is_external(path) else model_digest(path)


def load(path: ModelPlace, spec: NetworkSpec) -> ModelFile | ExternalModel | PythonModel:
    """Read and check a model.

    Parameters
    ----------
    path
        The model.
    spec
        The network, as returned by `describe`, so that its behaviour is not measured again.

    Returns
    -------
    ModelFile, ExternalModel or PythonModel
        The model in memory.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    contract = spec if isinstance(spec, Contract) else None
    if isinstance(path, ImportPath):
        return import_model(path, contract)
    if is_external(path):
        return read_external(path, contract)
    from emseg_core.model.file import load_model  # torch takes seconds to import

    return load_model(path)
