"""What happens to one block: exact overlap tiles for U-Nets on volumes too big for one machine."""

from emseg.box import Box as Box
from emseg.errors import EmsegError as EmsegError
from emseg.errors import InputError as InputError
from emseg.specs.model import ModelSpec as ModelSpec
from emseg.specs.volume import VolumeSpec as VolumeSpec

__version__ = "0.1.0"
