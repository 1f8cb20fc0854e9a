"""Options of ``sbatch`` and ``srun``: in full, however they are typed, and those of the user instead of ours."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from emseg_core.errors import InputError

SHORT = {
    "A": "account", "B": "extra-node-info", "C": "constraint", "D": "chdir", "F": "nodefile", "G": "gpus", "H": "hold",
    "J": "job-name", "L": "licenses", "M": "clusters", "N": "nodes", "O": "overcommit", "Q": "quiet", "S": "core-spec",
    "W": "wait", "a": "array", "b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error", "i": "input",
    "k": "no-kill", "m": "distribution", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "s": "oversubscribe",
    "t": "time", "v": "verbose", "w": "nodelist", "x": "exclude",
}  # fmt: skip
"""Names of the options with one letter."""
EXCLUSIVE = {
    "memory": ("mem", "mem-per-cpu", "mem-per-gpu"),
    "cpus": ("cpus-per-task", "cpus-per-gpu"),
    "gpus": ("gpus-per-task", "gpus", "gpus-per-node", "gpus-per-socket", "ntasks-per-gpu"),
    "requeue": ("requeue", "no-requeue"),
}
"""Options that SLURM refuses beside one another, or that contradict one another."""
KINDS = {name: kind for kind, names in EXCLUSIVE.items() for name in names}
LONG = {
    *SHORT.values(),
    *KINDS,
    "gres",
    "mem-bind",
    "gpu-bind",
    "qos",
    "signal",
    "open-mode",
    "parsable",
    "time-min",
    "acctg-freq",
}
"""Names that may be abbreviated; some are here because an abbreviation may mean them as well."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of ``sbatch`` or ``srun``."""

    name: str
    """In full, without dashes."""
    value: str | None = None

    def __str__(self) -> str:
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"

    @property
    def kinds(self) -> set[str]:
        """Kinds of resources that the option decides. Options with a kind in common replace one another."""
        if self.name in ("gres", "tres-per-task"):
            return {self.name} | {kind for kind in ("cpus", "gpus") if kind[:-1] in (self.value or "")}
        return {KINDS.get(self.name, self.name)}


def parse_options(texts: Iterable[str]) -> tuple[Option, ...]:
    """Parse options as they would be typed: ``--mem=4G``, ``--mem 4G``, ``-p gpu`` or ``-pgpu``.

    Parameters
    ----------
    texts
        One option each, or its words.

    Returns
    -------
    tuple of Option
        Each once; the last of a name counts, as for SLURM.

    Raises
    ------
    InputError
        If a text is not an option.
    """
    try:
        words = [*chain.from_iterable(map(shlex.split, texts))]
    except ValueError as error:
        raise InputError(f"options cannot be read ({error}): close each quote") from error
    found: dict[str, Option] = {}
    last = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            last = Option(_in_full(name), value if equals else None)
        elif word.startswith("-") and len(word) > 1:
            last = Option(SHORT.get(word[1], word[1]), word[2:] or None)
        elif last is not None and last.value is None:
            last = Option(last.name, word)
        else:
            raise InputError(
                f"options has {word!r}, which is not an option of sbatch: give each in full, like --constraint=a100"
            )
        found[last.name] = last
    return tuple(found.values())


def replaced(ours: Iterable[Option], theirs: Iterable[Option]) -> tuple[Option, ...]:
    """Return our options without those that the user decides, and then the user's.

    Parameters
    ----------
    ours
        What emseg asks for.
    theirs
        What the user asks for.

    Returns
    -------
    tuple of Option
        All options.
    """
    theirs = tuple(theirs)
    decided = set().union(*(option.kinds for option in theirs))
    return (*(option for option in ours if not option.kinds & decided), *theirs)


def without_patterns(path: object) -> str:
    """Return a path for an option in which SLURM replaces patterns such as ``%j``, so that it stays as it is.

    Parameters
    ----------
    path
        Path of a file or folder.

    Returns
    -------
    str
        The path with each ``%`` doubled.
    """
    return str(path).replace("%", "%%")


def _in_full(name: str) -> str:
    """Return the name of an option that may be abbreviated."""
    meant = [known for known in LONG if known.startswith(name)]
    return name if name in LONG or len(meant) != 1 else meant[0]
