"""Load optional libraries when a file or a volume needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from emseg_core.errors import VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.files.place import Place


def load_extra(library: str, extra: str, path: Place, use: str = "read") -> Any:
    """Import a library that is not installed with emseg itself.

    Parameters
    ----------
    library
        Name of the module.
    extra
        Extra of emseg that installs it.
    path
        What it is needed for, for the message.
    use
        What it is needed to do with `path`, as a past participle for the message.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    VolumeError
        If it is not installed.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise VolumeError(f"{path} is {use} with {library}, which is not installed: {install_hint(extra)}") from error
