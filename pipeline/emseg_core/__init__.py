"""Exact overlap-tile segmentation of volumes too large for one machine: everything that happens to one block."""

from emseg_core.account import complete_account
from emseg_core.loopback import exclude_loopback_from_proxies

complete_account()  # before the imports below, some of which need a home directory and a user name
exclude_loopback_from_proxies()

from emseg_core.box import Box as Box  # noqa: E402
from emseg_core.errors import EmsegError as EmsegError  # noqa: E402
from emseg_core.errors import InputError as InputError  # noqa: E402
from emseg_core.specs.model import ModelSpec as ModelSpec  # noqa: E402
from emseg_core.specs.volume import VolumeSpec as VolumeSpec  # noqa: E402

__version__ = "0.1.0"
