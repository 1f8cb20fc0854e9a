"""The models that come with emseg, found by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from emseg.errors import ModelError

DEFAULT = "membrane-fib25"
SUFFIX = ".safetensors"


def bundled_models() -> dict[str, Path]:
    """The bundled model files by name."""
    folder = Path(str(resources.files(__name__)))
    return {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}


def resolve_model(name_or_path: str | Path | None = None) -> Path:
    """The model file that is meant by the name of a bundled model or a path; None means the default one.

    Raises
    ------
    ModelError
        If it is neither a bundled model nor an existing file.
    """
    bundled = bundled_models()
    wanted = str(DEFAULT if name_or_path is None else name_or_path)
    if wanted in bundled:
        return bundled[wanted]
    if Path(wanted).exists():
        return Path(wanted)
    raise ModelError(f"{wanted!r} is no model file and no bundled model: give a path, or one of {', '.join(bundled)}")
