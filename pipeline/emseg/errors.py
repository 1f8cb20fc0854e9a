"""Everything that emseg raises on purpose.

    EmsegError
    |-- InputError            what was asked for cannot be done; nothing was written      exit code 2
    |   |-- VolumeError       the input volume, or what was said about it, is unusable
    |   |-- ModelError        the model file or its description is unusable
    |   |-- PlanError         volume, model, region and limits do not fit together
    |   |-- NumericsError     a worker computes other last bits than the run
    |   |-- DeviceError       there is no such GPU, or too many workers on it
    |   |-- UnguardedError    a script would run again in each of its workers; also a SystemExit
    |   `-- OutputError       the place for the output is taken, inside the input, or not writable
    |-- BlockError            one block cannot be computed; the others go on              exit code 3
    |-- MemoryShortageError   a predictor has too little memory for its batch
    |-- OrphanError           another run has taken over the output: nothing may be written any more
    `-- UnfinishedError       not all is done: the same command goes on                   exit code 3

Each message names the two things that disagree and the remedy, on one line.
"""

from __future__ import annotations

from typing import Literal


class EmsegError(Exception):
    """Base of all errors that emseg raises on purpose."""


class InputError(EmsegError, ValueError):
    """What was asked for cannot be done; nothing was written."""


class VolumeError(InputError):
    """The input volume, or what was said about it, cannot be used."""


class ModelError(InputError):
    """The model file, or the description of a network, cannot be used."""


class PlanError(InputError):
    """Volume, model, region and limits do not fit together."""


class OutputError(InputError):
    """The place for the output is taken, lies inside the input, or cannot be written."""


Fault = Literal["block", "store", "device"]
"""What is at fault where a block fails: the block itself, so that trying again is in vain; a store that may come back;
the device, which only a new process can use again."""


class NumericsError(InputError):
    """A worker computes other last bits than its run."""


class DeviceError(InputError):
    """There is no such GPU, or too many workers are on it."""


class UnguardedError(InputError, SystemExit):
    """A script begins a run where each worker process that imports it would begin it again.

    Such a script catches nothing: it ends with the exit code of a refusal, without a traceback.
    """

    code = 2


class BlockError(EmsegError):
    """One block cannot be computed; it stays *not computed* and the run goes on."""

    def __init__(self, message: str, fault: Fault = "block") -> None:
        super().__init__(message)
        self.fault = fault


class MemoryShortageError(EmsegError):
    """A predictor has too little memory for what it was given; with less it may succeed."""


class OrphanError(EmsegError):
    """Another run has taken over the output: nothing may be written any more."""


class UnfinishedError(EmsegError):
    """Not all is done; what is stays, and the same command goes on."""
