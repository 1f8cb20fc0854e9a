"""Find the models bundled with emseg by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from emseg_core.errors import ModelError

DEFAULT_MODEL = "membrane-fib25"
SUFFIX = ".safetensors"


def bundled_models() -> dict[str, Path]:
    """List the bundled models.

    Returns
    -------
    dict of str to Path
        Path of each model file, by its name.
    """
    folder = Path(str(resources.files(__name__)))
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def resolve_model(name_or_path: str | Path | None = None) -> Path:
    """Find a model file.

    Parameters
    ----------
    name_or_path
        Name of a bundled model, or a path; None selects the default model.

    Returns
    -------
    Path
        The model file.

    Raises
    ------
    ModelError
        If it is neither a bundled model nor an existing path.
    """
    bundled = bundled_models()
    wanted = str(DEFAULT_MODEL if name_or_path is None else name_or_path)
    if wanted in bundled:
        return bundled[wanted]
    if Path(wanted).exists():
        return Path(wanted)
    raise ModelError(f"{wanted!r} is neither a model file nor a bundled model: give a path, or one of {', '.join(bundled)}")
