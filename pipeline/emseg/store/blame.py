"""Why something failed, in words for whoever has to mend it, and whose fault it is."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from emseg.errors import BlockError, Fault, OrphanError
from emseg.printable import printable

LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR),
}
"""Errors of a disk that trying again does not mend."""


class StoreError(OSError):
    """A store did not give what it was asked for, and may do so later."""

    def __init__(self, cause: str, remedy: str, *, lasting: bool = False) -> None:
        super().__init__(errno.EIO, cause)
        self.remedy = remedy
        self.lasting = lasting
        """Whether it will say so again. Some stores refuse each object that is not there."""


def away(*, back: bool = False) -> StoreError:
    """What to raise where something was looked for that is away, or is `back` already."""
    return StoreError("it was away for a moment" if back else "it is not there any more", "mount or restore it")


def reason(error: BaseException) -> str:
    """Why something failed, on one line: the system's words for an `OSError`, else type and message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = f"{type(error).__name__}: {error}"[:1000]
    return printable(" ".join(text.split()))[:300]


def fault_of(error: BaseException) -> Fault:
    """Whether a store failed in a way that may pass, or what is stored is at fault."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return "block" if cause.errno in LASTING else "store"
        cause = cause.__cause__ or cause.__context__
    return "block"


@contextmanager
def blamed(what: str, remedy: str, passing: str | None = None) -> Iterator[None]:
    """Whatever disk, Zarr or a codec raise within the ``with``, as a `BlockError`: what happened, why, and the remedy.

    `passing` is the remedy where a store failed in a way that may pass, if it is another one.
    """
    try:
        yield
    except (BlockError, OrphanError):
        raise
    except Exception as error:
        fault = fault_of(error)
        if isinstance(error, StoreError):
            remedy = error.remedy
        elif passing is not None and fault == "store":
            remedy = passing
        raise BlockError(f"{what} ({reason(error)}): {remedy}", fault) from error
