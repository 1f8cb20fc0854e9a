"""Libraries that are not installed with emseg itself, loaded when a file asks for them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from emseg.errors import VolumeError


def load_extra(library: str, extra: str, path: Path, use: str = "read") -> Any:
    """The module with which a file is read, or used otherwise, of the extra of emseg that installs it.

    Raises
    ------
    VolumeError
        If it is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise VolumeError(f"{path} is {use} with {library}, which is not installed: pip install 'emseg[{extra}]'") from error
