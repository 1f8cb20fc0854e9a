"""What happens to one block: exact overlap tiles for U-Nets on volumes too big for one machine."""

from emseg.account import complete_account

complete_account()  # before anything that asks for it is imported

from emseg.box import Box as Box  # noqa: E402
from emseg.errors import EmsegError as EmsegError  # noqa: E402
from emseg.errors import InputError as InputError  # noqa: E402
from emseg.specs.model import ModelSpec as ModelSpec  # noqa: E402
from emseg.specs.volume import VolumeSpec as VolumeSpec  # noqa: E402

__version__ = "0.1.0"
