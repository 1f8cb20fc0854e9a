"""The functions of the package as a Python caller sees them.

Below, messages name options of the command line. Here their text is turned into keywords and functions, and a message about a
wrong keyword names the nearest right one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar, cast

from emseg.placement import Placement
from emseg.runs.events import Event, Noticed, Observer
from emseg.runs.notices import log
from emseg.settings.run import RunSettings
from emseg_core.errors import EmsegError

P = ParamSpec("P")
R = TypeVar("R")

COMMANDS = {
    "emseg evaluate --instances": "evaluate_instances",
    "emseg evaluate --seams": "evaluate_seams",
    "emseg run": "segment",
    "emseg status --watch": "watch",
    "emseg verify --checksums": "verify_checksums",
    "emseg verify --repair": "repair",
}
"""Functions of commands that have another name."""
KEYWORDS = {"class": "class_name", "solid": "planar"}
"""Keywords of options that have another name."""
FIELDS = {entry.name: entry for kind in (RunSettings, Placement) for entry in fields(kind)}
"""Fields of settings and of placement, which are keywords of many functions."""


def for_python(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that its messages speak to a Python caller.

    Parameters
    ----------
    function
        A command.

    Returns
    -------
    Callable
        The same, with all keywords in its signature.

    Raises
    ------
    TypeError
        On a call with a keyword that the function does not take.
    """
    signature = _signature(function)

    @wraps(function)
    def command(*args: P.args, **keywords: P.kwargs) -> R:
        known = [name for name, entry in signature.parameters.items() if entry.kind is not entry.VAR_KEYWORD]
        for name in keywords:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0)
                raise TypeError(f"{function.__name__}() has no keyword {name!r}: did you mean {near[0]!r}?")
        if "on_event" in known:
            keywords["on_event"] = _observer(keywords.get("on_event"))
        try:
            result: Any = function(*args, **keywords)
            return cast("R", result.started_by(for_python) if hasattr(result, "started_by") else result)
        except EmsegError as error:
            error.args = tuple(in_python(text) if isinstance(text, str) else text for text in error.args)
            raise

    cast("Any", command).__signature__ = signature
    command.__doc__ = _documentation(function)
    return command


def in_python(text: str) -> str:
    """Return a message with options and commands as keywords and functions.

    Parameters
    ----------
    text
        As for the command line.

    Returns
    -------
    str

    Examples
    --------
    >>> in_python("choose another place with -o, or start over with --overwrite")
    'choose another place with `output`, or start over with overwrite=True'
    >>> in_python("use --device cpu, or repair it with `emseg verify --repair`")
    "use device='cpu', or repair it with `repair()`"
    >>> in_python("to keep both, -o NEW")
    'to keep both, another output'
    """
    text = re.sub(r"`(emseg [^`]*)`", lambda match: f"`{_function(match[1])}`", text)
    text = re.sub(r"(?<![\w-])-o\b", "--output", text)
    return re.sub(r"(?<![\w-])--([a-z][a-z-]*)(?: ([\w.:,/]*\w))?", _keyword, text)


def _observer(given: Any) -> Observer:
    """Return an observer whose notices speak to a Python caller."""
    observer: Observer = given or log

    def observe(event: Event) -> None:
        observer(Noticed(in_python(event.message)) if isinstance(event, Noticed) else event)

    return observe


def _function(command: str) -> str:
    """Return a command as the call of a function."""
    for words in sorted(COMMANDS, key=len, reverse=True):
        if command.startswith(words):
            return f"{COMMANDS[words]}()"
    return f"{command.split()[1].replace('-', '_')}()"


def _keyword(match: re.Match[str]) -> str:
    """Return an option, with the value behind it, as a keyword."""
    option, value = match[1], match[2]
    flags, choices = _options()
    name = KEYWORDS.get(option, option.removeprefix("no-").replace("-", "_"))
    behind = f" {value}" if value else ""
    if option in flags:
        return f"{name}={not option.startswith('no-')}{behind}"
    if value and value.isupper():
        return f"another {name}"
    if value in choices.get(option, ()):
        return f"{name}={value!r}"
    if value and re.fullmatch(r"[\d.]+([:,][\d.]+)*", value):
        numbers = re.split("[:,]", value)
        return f"{name}={value}" if len(numbers) == 1 else f"{name}=({', '.join(numbers)})"
    return f"`{name}`{behind}"


@cache
def _options() -> tuple[set[str], dict[str, set[str]]]:
    """Return the options that are flags, and the values that others may have."""
    import click

    from emseg.cli.command import cli

    flags: set[str] = set()
    choices: dict[str, set[str]] = {}
    for command in cli.commands.values():
        for option in command.params:
            for typed in (*option.opts, *option.secondary_opts):
                name = typed.lstrip("-")
                if isinstance(option, click.Option) and option.is_flag and option.flag_value is not None:
                    flags.add(name)
                if isinstance(option.type, click.Choice):
                    choices.setdefault(name, set()).update(map(str, option.type.choices))
    return flags, choices


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function, with all keywords of its last parameter listed."""
    signature = inspect.signature(function)
    parameters: list[inspect.Parameter] = []
    for entry in signature.parameters.values():
        summed_up = re.fullmatch(r"Unpack\[(\w+)\]", str(entry.annotation))
        if entry.kind is not entry.VAR_KEYWORD or summed_up is None:
            parameters.append(entry)
            continue
        for keyword, kind in vars(import_module(function.__module__))[summed_up[1]].__annotations__.items():
            annotation = getattr(kind, "__forward_arg__", kind)
            default = FIELDS[keyword].default
            parameters.append(inspect.Parameter(keyword, entry.KEYWORD_ONLY, default=default, annotation=annotation))
    return signature.replace(parameters=parameters)


def _documentation(function: Callable[..., Any]) -> str | None:
    """Return the docstring of a function, with the fields that its keywords are under *Parameters*."""
    text = inspect.getdoc(function)
    if text is None or ("**given" not in text and "**where" not in text):
        return text
    own = inspect.signature(function).parameters
    entries = [FIELDS[name] for name in _signature(function).parameters if name not in own]
    listed = "".join(f"{entry.name} : {entry.type}\n    {entry.metadata['text']}\n" for entry in entries)
    return re.sub(r"^\*\*(given|where)\n    .*\n", lambda _: listed, text, flags=re.MULTILINE)
