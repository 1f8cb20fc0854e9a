"""Classify errors, as transient (the store's: retry) or permanent (the block's), and describe them on one line."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from emseg_core.errors import BlockError, Fault, OrphanError, VolumeError
from emseg_core.printable import printable

PERMANENT_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR),
}
"""Errors of a disk that a retry does not fix."""


class StoreError(OSError):
    """Failure of a store to serve a request, which may succeed later."""

    def __init__(self, cause: str, remedy: str, *, permanent: bool = False) -> None:
        super().__init__(errno.EIO, cause)
        self.remedy = remedy
        self.permanent = permanent
        """Whether a retry would fail in the same way. Some stores deny access to each object that does not exist."""


def store_unavailable(*, recovered: bool = False) -> StoreError:
    """Return the error to raise where files were looked for in a store that has gone away.

    Parameters
    ----------
    recovered
        Whether the store is back already.

    Returns
    -------
    StoreError
        The error, to be raised by the caller.
    """
    return StoreError("it was unavailable for a moment" if recovered else "it is no longer there", "mount or restore it")


def describe_error(error: BaseException) -> str:
    """Describe on one line why something failed.

    Parameters
    ----------
    error
        Any error.

    Returns
    -------
    str
        The cause of a `StoreError`, the system's own words for another `OSError`, else type and message, cut to 300
        characters and fit to print.
    """
    error = leading_error(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if isinstance(error, StoreError) else error.strerror.lower()
    text = f"{type(error).__name__}: {error}"[:1000]
    return printable(" ".join(text.split()))[:300]


def classify_fault(error: BaseException) -> Fault:
    """Decide whether an error is transient or lies in what is stored.

    Parameters
    ----------
    error
        Any error.

    Returns
    -------
    "store" or "block"
        ``"store"`` if the error, or one that caused it, is a failure of the store that may pass; else ``"block"``.
    """
    failure = _failure_in(leading_error(error))
    return "block" if failure is None or failure.errno in PERMANENT_ERRNOS else "store"


def leading_error(error: BaseException) -> BaseException:
    """Return the error that decides about a group of them: a failure of the store before others, a permanent one first.

    Returns
    -------
    BaseException
        A member of the group, or of a group inside; `error` itself if it is no group.
    """
    members = list(_members(error))
    ranks = [2 if failure is None else failure.errno not in PERMANENT_ERRNOS for failure in map(_failure_in, members)]
    return members[ranks.index(min(ranks))]


def _members(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group and of the groups inside; an error that is no group is its only member."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _members(member)
    else:
        yield error


def _failure_in(error: BaseException) -> OSError | None:
    """Find the failure of a store in an error or in its causes, which may form a cycle."""
    pending, seen = [error], set[int]()
    while pending:
        cause = pending.pop()
        if isinstance(cause, OSError):
            return cause
        if id(cause) not in seen:
            seen.add(id(cause))
            causes = cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause.__cause__ or cause.__context__,)
            pending += [one for one in causes if one is not None]
    return None


@contextmanager
def translate_errors(what: str, remedy: str, transient_remedy: str | None = None) -> Iterator[None]:
    """Turn any error of a disk, of Zarr or of a codec within the ``with`` block into a `BlockError`.

    Parameters
    ----------
    what
        The failure, as the start of the message.
    remedy
        How to fix it, the end of the message. The remedy of a `StoreError` replaces it.
    transient_remedy
        Remedy for a transient failure of a store, if it is another one.

    Yields
    ------
    None
        While the body reads or writes.

    Raises
    ------
    BlockError
        If the body fails; its fault is that of `classify_fault`.
    OrphanError
        If the body raises it.
    """
    try:
        yield
    except (BlockError, OrphanError):
        raise
    except Exception as error:
        fault = classify_fault(error)
        failure = leading_error(error)
        if isinstance(failure, StoreError):
            remedy = failure.remedy
        elif transient_remedy is not None and fault == "store":
            remedy = transient_remedy
        raise BlockError(f"{what} ({describe_error(error)}): {remedy}", fault) from error


@contextmanager
def translate_damage(what: str, remedy: str | Callable[[Exception], str] = "copy it again") -> Iterator[None]:
    """Turn any error that damaged files cause in a library within the ``with`` block into a `VolumeError`.

    Parameters
    ----------
    what
        Action that failed.
    remedy
        How to fix it, or a function that says so for an error.

    Raises
    ------
    VolumeError
        If anything is raised; a `VolumeError` is passed on as it is.
    """
    try:
        yield
    except VolumeError:
        raise
    except Exception as error:
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        said = remedy if isinstance(remedy, str) else remedy(error)
        raise VolumeError(f"{what} ({where}{describe_error(error)}): {said}") from error
