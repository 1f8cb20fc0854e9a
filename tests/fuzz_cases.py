"""Generate damaged files, try each in a separate process, and count the outcomes.

A property is a function of Hypothesis data and a folder. It writes a damaged file into the folder and returns the call to
try. The call may fail with one of emseg's own errors, whose message is one line, and must write nothing. `try_in_child` runs
one property in a child process, so that its memory can be measured:

    python tests/fuzz_cases.py FILE PROPERTY

EMSEG_FUZZ multiplies the number of cases and draws new ones each time. EMSEG_FUZZ_SEED repeats the cases of a seed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from emseg_core.errors import EmsegError

FACTOR = int(os.environ.get("EMSEG_FUZZ", "1"))
SEED = int(os.environ.get("EMSEG_FUZZ_SEED", random.SystemRandom().randrange(2**32))) if "EMSEG_FUZZ" in os.environ else None
"""Seed of the cases; None repeats the same cases each time."""

MOST_BYTES = 256 * 2**20
"""Maximum memory of all cases of a property, above that of the process before."""
MOST_ADDRESSES = 4 * 2**30
"""Address space above that. Larger requests raise `MemoryError`, so that a bug here does not end other processes."""
MOST_SECONDS = 10
"""Maximum processor seconds of a case, however many other processes share the processor."""
LONGEST = 2000
"""Maximum length of a message, in characters."""

FINISHED = "no error"
Attempt = Callable[[], None]
Prepare = Callable[[st.DataObject, Path], Attempt]


@dataclass(frozen=True)
class Property:
    """A kind of damage, and how to try it."""

    prepare: Prepare
    cases: int
    allowed: tuple[type[Exception], ...]

    @property
    def wanted(self) -> int:
        """Return the number of cases to run."""
        return self.cases * FACTOR


@dataclass(frozen=True)
class Tally:
    """Counts of a child process."""

    name: str
    cases: int
    seen: dict[str, int]
    """Number of cases by outcome: an exception's name, with that of its cause, or `FINISHED`."""
    seconds: float
    slowest: float
    """Seconds of the slowest case."""
    bytes_before: int
    bytes_peak: int

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {count}" for name, count in sorted(self.seen.items(), key=lambda item: -item[1]))
        grown = (self.bytes_peak - self.bytes_before) / 2**20
        spent = f"{self.seconds:>6.1f} s, longest {self.slowest:.2f} s, +{grown:.0f} MiB"
        return f"{self.name:<24}{self.cases:>6} cases {spent}: {seen}"


TALLIES: list[Tally] = []
"""Counts of the properties in this test session."""


def fuzz(cases: int, allowed: tuple[type[Exception], ...] = (EmsegError,)) -> Callable[[Prepare], Property]:
    """Make a `Property` of a function."""
    return lambda prepare: Property(prepare, cases, allowed)


def try_in_child(file: str, name: str) -> Tally:
    """Run a property of a test file in a child. If it fails, show the child's output, including the smallest failing case."""
    environment = {**os.environ} | ({} if SEED is None else {"EMSEG_FUZZ_SEED": str(SEED)})
    child = subprocess.run(
        [sys.executable, __file__, file, name], env=environment, capture_output=True, text=True, timeout=240 * FACTOR
    )
    assert child.returncode == 0, f"{name}, seed {SEED}, ended with {child.returncode}:\n{child.stdout}\n{child.stderr[-8000:]}"
    tally = Tally(**json.loads(child.stdout.splitlines()[-1]))
    TALLIES.append(tally)
    print(tally)
    return tally


def check(tally: Tally, wanted: int) -> None:
    """Check that all cases were run within the memory limit, and that some passed and some ended in an error."""
    assert tally.cases >= wanted
    assert sum(tally.seen.values()) == tally.cases
    assert tally.bytes_peak - tally.bytes_before <= MOST_BYTES, str(tally)
    assert len(tally.seen) > 1, str(tally)


# -- damage -----------------------------------------------------------------------------------------------------

NUMBERS = [0, -1, 1, 3, 255, 2**16, 2**31, 2**32, 10**7, 10**12, 10**18, 2**63 - 1, 2**63, 2**64, -(10**30), 10**400]
NUMBERS += [0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")]  # type: ignore[list-item]
TEXTS = ["", "\0", "a\0b", "..", "../other", "/", "/etc/passwd", "C:\\x", "two\nlines\r\x1b[31m\x85\u2028", "\ud800", "\u202ez"]
TEXTS += [
    "x" * 100_000,
    "é" * 5000,
    "\U0001d537yx",
    "1e999",
    "NaN",
    "pickle",
    "zstd",
    "uint8",
    "float32",
    "<u8",
    "|O",
    "z" * 300,
]
DEPTHS = (30, 800, *range(880, 1000, 7), 5000, 100_000)
"""Python's parser gives up at about 1000, and the code that uses its result may give up slightly earlier."""
ODD = st.one_of(
    st.sampled_from([None, True, False, [], {}, [[]], [0] * 5000, [None], {"": {}}, {"id": "pickle"}]),
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS).map(lambda number: [number] * 3),
    st.integers(-4, 300),
    st.sampled_from(TEXTS),
    st.sampled_from(DEPTHS).map(lambda depth: f"<deep {depth}>"),
).map(deepcopy)
"""Values that do not belong in a JSON document at that place."""


class Twin(str):
    """A key that occurs twice in a JSON object."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a JSON document with each of its keys."""
    for key in list(document) if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])


def damaged_json(data: st.DataObject, text: str | bytes) -> bytes:
    """Draw a JSON document with values replaced, keys deleted or duplicated, or entries inserted, at one to three places."""
    document = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        if not (found := list(places(document))):
            break
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        match data.draw(st.sampled_from(["replace", "replace", "replace", "delete", "insert", "move"])):
            case "replace":
                container[key] = data.draw(ODD)
            case "delete":
                del container[key]
            case "insert" if isinstance(container, dict):
                container[Twin(key)] = data.draw(ODD)
            case "insert":
                container.insert(key, data.draw(ODD))
            case "move":  # a value that is valid elsewhere
                other, place = found[data.draw(st.integers(0, len(found) - 1))]
                container[key] = json.loads(json.dumps(other[place]))
    parts = json.dumps(document).split('"<deep ')
    for index, part in enumerate(parts[1:], 1):
        depth, _, rest = part.partition('>"')
        parts[index] = "[" * int(depth) + "]" * int(depth) + rest
    return "".join(parts).encode()


def damaged_bytes(data: st.DataObject, raw: bytes, most: int = 3) -> bytes:
    """Draw bytes truncated, or changed, inserted or removed at one to `most` places, often near either end."""
    if data.draw(st.integers(0, 4)) == 0:
        return raw[: data.draw(place_in(raw))]
    damaged = bytearray(raw)
    for _ in range(data.draw(st.integers(1, most))):
        place = data.draw(place_in(damaged))
        if place < len(damaged) and data.draw(st.booleans()):
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            patch = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\xff" * 8, bytes(8), bytes(4096)])))
            damaged[place : place + data.draw(st.sampled_from([0, len(patch), 1, 16]))] = patch
    return bytes(damaged)


def place_in(raw: bytes | bytearray) -> st.SearchStrategy[int]:
    """Draw an offset in a file of these bytes, including its end."""
    return st.one_of(*(st.integers(max(0, low), len(raw)) for low in (0, len(raw) - 64))) | st.integers(0, min(len(raw), 256))


# -- in the child -----------------------------------------------------------------------------------------------


class TookTooLong(BaseException):
    """A case takes too long. It is no subclass of `Exception`, so code under test does not catch it."""


@contextmanager
def time_limit() -> Iterator[None]:
    """End a call that takes longer than `MOST_SECONDS`. The child's own time limit ends one that waits for ever."""

    def stop(*_: object) -> None:
        raise TookTooLong

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the size and change time in nanoseconds of a folder and all its content. Programs cannot fake change times."""
    entries = (Path(root, name) for root, folders, files in os.walk(folder) for name in (".", *folders, *files))
    return {str(entry): (found.st_size, found.st_ctime_ns) for entry in entries if (found := entry.lstat())}


def memory(name: str) -> int:
    """Return an entry of ``/proc/self/status`` in bytes."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


def judge(attempt: Attempt, allowed: tuple[type[Exception], ...], folder: Path) -> str:
    """Return how an attempt ended, in a word or two. Fail if that outcome is not allowed."""
    before = snapshot(folder)
    outcome = FINISHED
    try:
        with time_limit():
            attempt()
    except allowed as error:
        outcome = type(error).__name__
        if isinstance(error, EmsegError):
            outcome += f" of {type(error.__cause__).__name__}" if error.__cause__ else ""
            message = str(error)
            assert message.isprintable(), f"control characters or line breaks in {message!r}"
            assert len(message) <= LONGEST, f"a message of {len(message)} characters: {message[:LONGEST]}"
    assert snapshot(folder) == before, "something was written"
    return outcome


def main(file: str, name: str) -> None:
    """Run a property and print its tally as one line of JSON."""
    warnings.simplefilter("ignore")
    tried: Property = runpy.run_path(file)[name]
    seen: Counter[str] = Counter()
    longest = 0.0

    def case(data: st.DataObject) -> None:
        nonlocal longest
        with tempfile.TemporaryDirectory() as folder:
            attempt = tried.prepare(data, Path(folder))
            start = time.perf_counter()
            outcome = judge(attempt, tried.allowed, Path(folder))
            longest = max(longest, time.perf_counter() - start)
        seen[outcome] += 1

    def run(cases: int) -> None:
        chosen = settings(
            max_examples=cases,
            derandomize=SEED is None,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        drawn = chosen(given(st.data())(case))
        (drawn if SEED is None else seed(SEED)(drawn))()

    run(10)  # so that lazily imported modules are loaded
    seen.clear()
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MOST_ADDRESSES,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory("VmRSS"), time.perf_counter()
    run(tried.wanted)
    seconds, peak = time.perf_counter() - start, memory("VmHWM")
    tally = Tally(name, sum(seen.values()), dict(seen), seconds, longest, before, peak)
    print(json.dumps(tally.__dict__))


if __name__ == "__main__":
    main(*sys.argv[1:])
