"""The errors that emseg raises on purpose.

    EmsegError
    |-- InputError            a request cannot be met; nothing was written                exit code 2
    |   |-- VolumeError       the input volume, or what was stated about it, cannot be used
    |   |-- ModelError        the model file or its description cannot be used
    |   |-- PlanError         volume, model, region and limits do not fit together
    |   |-- NumericsError     the last bits of a worker's results differ from those of the run
    |   |-- DeviceError       there is no such GPU, or too many workers on it
    |   |-- UnguardedError    a script would run again in each of its workers; also a SystemExit
    |   `-- OutputError       the output exists, is inside the input, or cannot be written
    |-- BlockError            one block cannot be computed; the run continues             exit code 3
    |-- MemoryShortageError   a predictor has too little memory for its batch
    |-- OrphanError           another run has taken over the output: nothing may be written any more
    `-- UnfinishedError       not everything is done: the same command resumes            exit code 3

Each message is one line with the two things that disagree and the remedy. Remedies name options of the command line; the
functions of the package `emseg` turn them into keywords.
"""

from __future__ import annotations

from typing import Literal


class EmsegError(Exception):
    """Base of all errors that emseg raises on purpose."""


class InputError(EmsegError, ValueError):
    """A request cannot be met; nothing was written."""


class VolumeError(InputError):
    """The input volume, or what was stated about it, cannot be used."""


class ModelError(InputError):
    """The model file, or the description of a network, cannot be used."""


class PlanError(InputError):
    """Volume, model, region and limits do not fit together."""


class OutputError(InputError):
    """The output exists already, is inside the input, or cannot be written."""


Fault = Literal["block", "store", "device"]
"""The cause of a failed block: the block itself, so that a retry would fail as well; a store that may come back; or the
device, which only a new process can use again."""


class NumericsError(InputError):
    """The last bits of a worker's results differ from those of its run."""


class DeviceError(InputError):
    """There is no such GPU, or too many workers are on it."""


class UnguardedError(InputError, SystemExit):
    """A script starts a run at its top level, and each worker process that imports it would start it again.

    It is a `SystemExit`, so that the script ends with the exit code of a refusal and without a traceback.
    """

    code = 2


class BlockError(EmsegError):
    """One block cannot be computed; it stays *not computed*, and the run continues."""

    def __init__(self, message: str, fault: Fault = "block") -> None:
        super().__init__(message)
        self.fault = fault


class MemoryShortageError(EmsegError):
    """A predictor has too little memory for its batch; a smaller one may fit."""


class OrphanError(EmsegError):
    """Another run has taken over the output: nothing may be written any more."""


class UnfinishedError(EmsegError):
    """Not everything is done; finished blocks are kept, and the same command resumes."""
