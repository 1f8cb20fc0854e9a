"""Libraries that are not installed with emseg itself, loaded when a file or a volume asks for them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from emseg.errors import VolumeError
from emseg.store.place import Place


def load_extra(library: str, extra: str, path: Place, use: str = "read") -> Any:
    """The module with which what is at a place is read, or used otherwise, of the extra of emseg that installs it.

    Raises
    ------
    VolumeError
        If it is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise VolumeError(f"{path} is {use} with {library}, which is not installed: pip install 'emseg[{extra}]'") from error
