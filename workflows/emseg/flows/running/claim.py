"""Inspect, claim and prepare an output path: create, resume or start over, under a lease."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.flows.records.completeness import layout_of
from emseg.runs.events import Noticed, Observer
from emseg_core.errors import OutputError
from emseg_core.recipe import Recipe
from emseg_core.store.files.files import open_writable_files
from emseg_core.store.files.lease import Lease, Token, take_lease
from emseg_core.store.files.place import Address, Place
from emseg_core.store.files.records import Records
from emseg_core.store.outputs.level import REPAIR_HINT
from emseg_core.store.outputs.lifecycle import create_output, is_taken, open_output, restart_output, tidy_output
from emseg_core.store.outputs.output import Output


def output_to_resume(place: Place, overwrite: bool) -> Output | None:
    """Open the output of the run to resume.

    Parameters
    ----------
    place
        Place of the output, which need not exist.
    overwrite
        Whether to start over instead.

    Returns
    -------
    Output or None
        The output, to read; None if there is none yet, or the run starts over.

    Raises
    ------
    OutputError
        If something else is there.
    """
    if not is_taken(place):
        return None
    try:
        output = open_output(place)
    except OutputError as error:
        if REPAIR_HINT in str(error):
            raise
        cause, _, _ = str(error).rpartition(": ")
        raise OutputError(
            f"{place} already exists, but no run can resume there ({cause}): choose another place with -o"
        ) from error
    if overwrite and isinstance(place, Path) and place.is_symlink():
        raise OutputError(f"{place} is a link to an output, not an output: give its target instead, {place.resolve()}")
    return None if overwrite else output


def check_same_settings(place: Place, original: Recipe, requested: Recipe) -> None:
    """Refuse to resume a run with other settings.

    Parameters
    ----------
    place
        Where the output is.
    original
        The recipe that the output was started with.
    requested
        The recipe of the new run.

    Raises
    ------
    OutputError
        If they differ; the message lists up to five settings with both values.
    """
    differences = list(original.differences(requested))
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise OutputError(
            f"{place} was started with other settings: {shown}. "
            "To resume, use the original settings; to start over, --overwrite; to keep both, -o NEW"
        )


def prepare_output(
    place: Place, recipe: Recipe, outside: NDArray[np.bool_] | None, card: dict[str, str], overwrite: bool, token: Token | None
) -> None:
    """Create an output, start it over, or remove what a killed run left in it.

    Parameters
    ----------
    place
        Place of the output, which need not exist.
    recipe
        Everything that decides the output's bytes.
    outside
        Blocks that a mask leaves out, ``(z, y, x) bool`` on the grid of the plan; None without a mask.
    card
        The model card to store in the output.
    overwrite
        Whether to start over if there is an output.
    token
        The right to write; None for a new output on a disk.

    Raises
    ------
    OutputError
        If another run has created the output since this one found none there.
    """
    form = layout_of(recipe, outside, {"recipe": recipe.to_json(), "fingerprint": recipe.fingerprint, "model": card})
    if not is_taken(place):
        create_output(place, form, token)
        return
    if token is None:
        raise OutputError(f"{place} was created by another run meanwhile: run again to resume it, or choose another with -o")
    if overwrite:
        restart_output(place, form, token)
    tidy_output(place, token)


class Claim:
    """A run's claim to an output path.

    An existing output is leased at once, a new one after it has been created. On an object store, where an output cannot
    appear all at once, it is leased before.
    """

    def __init__(self, place: Place, notify: Observer) -> None:
        self._place = place
        self._notify = notify
        self._lease = lease_output(place, notify) if isinstance(place, Address) or is_taken(place) else None

    @property
    def token(self) -> Token | None:
        """The right to write; None if the output is not leased yet."""
        return self._lease.token if self._lease else None

    @property
    def run(self) -> int:
        """Number of the run that has taken the lease; 0 if it is not taken yet."""
        return self._lease.run if self._lease is not None else 0

    def held(self) -> AbstractContextManager[Lease]:
        """Hold the lease of the output, which must exist now, until the ``with`` ends.

        Returns
        -------
        contextlib.AbstractContextManager
            Gives the lease, and releases it at the end.
        """
        lease, self._lease = self._lease or lease_output(self._place, self._notify), None
        return lease.held()

    def withdraw(self) -> None:
        """Give the lease back if it was never held."""
        if self._lease is not None:
            self._lease.withdraw()


@contextmanager
def claim_output(place: Place, notify: Observer) -> Iterator[Claim]:
    """Claim an output path; the claim is withdrawn at the end of the ``with`` unless a run has held it.

    Parameters
    ----------
    place
        Place of the output.
    notify
        Function that is given notices.

    Yields
    ------
    Claim
        The claim.

    Raises
    ------
    OutputError
        If another run in progress holds the lease.
    """
    claim = Claim(place, notify)
    try:
        yield claim
    finally:
        claim.withdraw()


def lease_output(place: Place, notify: Observer) -> Lease:
    """Take the lease of an output.

    Parameters
    ----------
    place
        Where the output is.
    notify
        Is sent a notice if taking the lease takes long.

    Returns
    -------
    Lease
        The sole right to run on the output.

    Raises
    ------
    OutputError
        If another run in progress holds the lease.
    """
    return take_lease(Records(open_writable_files(place.absolute())), place, lambda message: notify(Noticed(message)))


def worker_token(place: Place, lease: Lease) -> Token:
    """Return the right to write to an output, for the workers of a run.

    On an object store, a worker with this token waits while the store is unavailable for a short time.

    Parameters
    ----------
    place
        Where the output is.
    lease
        The lease of the run.

    Returns
    -------
    Token
        The right to write.
    """
    if isinstance(place, Path):
        return lease.token
    return Token(Records(open_writable_files(place, lease.token.files.owner, patient=True)), lease.run)
