"""Another run takes over a folder in progress, although the previous run is still active."""

from __future__ import annotations

from pathlib import Path

import pytest

from emseg_core.store.files.files import LocalFiles
from emseg_core.store.files.lease import Holder, take_lease
from emseg_core.store.files.records import Records


def take_over(place: Path) -> None:
    """Take it over, and end at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "dead", lambda self, age: True)
        lease = take_lease(Records(LocalFiles(place)), place)
    with lease.held():
        pass
