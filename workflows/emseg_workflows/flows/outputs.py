"""What is at an output's place: nothing, a run to go on with, or one to begin anew; and whose turn it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emseg.errors import OutputError
from emseg.recipe import Recipe
from emseg.store.files import hold_files
from emseg.store.lease import Lease, Token, take_lease
from emseg.store.level import MEND
from emseg.store.output import create_output, is_taken, open_output, renew_output, settle_output
from emseg.store.place import Address, Place
from emseg.store.records import Records
from emseg_workflows.events import Noticed, Observer
from emseg_workflows.flows.record import recipe_of
from emseg_workflows.flows.whole import form_of


def begun_recipe(place: Place, overwrite: bool) -> Recipe | None:
    """The recipe of the run that has begun at this place, if it is to be gone on with.

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
        if MEND in str(error):
            raise
        cause, _, _ = str(error).rpartition(": ")
        raise OutputError(
            f"{place} already exists, and no run can go on there ({cause}): choose another place with -o"
        ) from error
    if overwrite and isinstance(place, Path) and place.is_symlink():
        raise OutputError(f"{place} is a link to an output, not an output: name what it leads to, {place.resolve()}")
    return None if overwrite else recipe_of(output)


def check_same(place: Place, begun: Recipe, asked: Recipe) -> None:
    """Refuse to go on with a run by another recipe.

    Raises
    ------
    OutputError
        If they differ; it names each item with both values.
    """
    differences = list(begun.differences(asked))
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise OutputError(
            f"{place} was begun with other settings (there / now): {shown}: "
            "repeat the first run's settings to go on, choose another place with -o, or start over with --overwrite"
        )


def prepare_output(
    place: Place,
    recipe: Recipe,
    outside: NDArray[np.bool_] | None,
    card: dict[str, str],
    overwrite: bool,
    token: Token | None = None,
) -> None:
    """Make the output, or begin it anew, or tidy up what a killed run has left in it.

    Parameters
    ----------
    outside
        The blocks that a mask leaves out, ``(z, y, x) bool`` on the grid of the plan.
    token
        The right to write to an output that is there, or will be on an object store.
    """
    form = form_of(recipe, outside, {"recipe": recipe.to_json(), "fingerprint": recipe.fingerprint, "model": card})
    if not is_taken(place):
        create_output(place, form, token)
        return
    if overwrite:
        renew_output(place, form, token)
    settle_output(place, token)


class Claim:
    """An output's place that a run is about to write to: leased if an output is there already, else once it has been made.

    On an object store, where nothing appears all at once, it is leased before.
    """

    def __init__(self, place: Place, notify: Observer) -> None:
        self._place = place
        self._notify = notify
        self._lease = lease_output(place, notify) if isinstance(place, Address) or is_taken(place) else None

    @property
    def token(self) -> Token | None:
        """The right to write, if the output is leased already."""
        return self._lease.token if self._lease else None

    @property
    def run(self) -> int:
        """Number of the run whose lease has been taken; 0 if none has yet."""
        return self._lease.run if self._lease is not None else 0

    def held(self) -> AbstractContextManager[Lease]:
        """The lease of the output, which is there by now; released at the end of the ``with``."""
        lease, self._lease = self._lease or lease_output(self._place, self._notify), None
        return lease.held()

    def withdraw(self) -> None:
        """Undo the claim, if no run came of it."""
        if self._lease is not None:
            self._lease.withdraw()


@contextmanager
def claimed(place: Place, notify: Observer) -> Iterator[Claim]:
    """A claim to a place, which is withdrawn at the end of the ``with`` unless a run has held it.

    Raises
    ------
    OutputError
        If another run that lives has it.
    """
    claim = Claim(place, notify)
    try:
        yield claim
    finally:
        claim.withdraw()


def lease_output(place: Place, notify: Observer) -> Lease:
    """The sole right to run on an output.

    Raises
    ------
    OutputError
        If another run that lives has it.
    """
    return take_lease(Records(hold_files(place.absolute())), place, lambda message: notify(Noticed(message)))


def token_of(place: Place, lease: Lease) -> Token:
    """The right of a run to write to an output, for its workers: they wait where its store is away for a while."""
    if isinstance(place, Path):
        return lease.token
    return Token(Records(hold_files(place, lease.token.files.owner, patient=True)), lease.run)
