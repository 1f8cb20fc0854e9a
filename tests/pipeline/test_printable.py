"""Test how untrusted text is shown."""

from __future__ import annotations

import io
import subprocess
import sys
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_core.printable import PrintableStream, printable, printable_lines

CONTROLS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    "text", ["5 µm", "Hörnchen/ü.zarr", "電子顕微鏡\u3000体積", "C:\\data\\n.zarr", "1\u00a0000 voxels", ""]
)
def test_what_can_be_read_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b31m\x7f\x00\x08", r"\x9b31m\x7f\x00\x08"),
        ("one\ntwo\r\x85\u2028\u2029three\t", r"one\ntwo\r\x85\u2028\u2029three\t"),
        ("\u202egnp.exe\u2066\u2069\u200f", r"\u202egnp.exe\u2066\u2069\u200f"),
        ("name-\udcff-\ud800", r"name-\udcff-\ud800"),
        ("\U000e0041\ufeff", r"\U000e0041\ufeff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown, "once is enough"


@given(st.lists(st.text(st.characters(exclude_categories=[]))))
def test_each_line_is_one_line_of_plain_letters(lines: list[str]) -> None:
    shown = printable_lines(lines)
    assert shown.count("\n") == max(0, len(lines) - 1)
    assert not {category(letter) for letter in shown.replace("\n", "")} & CONTROLS
    shown.encode()


def test_a_stream_keeps_lines_apart() -> None:
    file = io.StringIO()
    stream = PrintableStream(file)
    assert stream.write("one\n\ttwo\x1b[1m\n") == 13
    stream.writelines(["\x9b", "\r\n"])
    assert file.getvalue() == "one\n\ttwo\\x1b[1m\n\\x9b\\r\n"
    with pytest.raises(TypeError):
        stream.write(b"")  # type: ignore[arg-type]  # how click asks what kind of stream it is
    assert stream.getvalue() == file.getvalue(), "all else is that of the stream"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_all_that_a_process_says_is_shown_whatever_its_encoding(encoding: str) -> None:
    """This covers results, warnings, log lines and tracebacks, also those of threads."""
    code = """
import logging, sys, threading, warnings
from emseg_core.printable import guard_streams
guard_streams()
guard_streams()
print("5 \\u00b5m \\u96fb")
warnings.warn("warning \\x1b[1m")
logging.getLogger("of.a.library").warning("log \\x9b1m")
thread = threading.Thread(target=exec, args=("raise ValueError('thread \\x1b[2m \\u96fb')",))
thread.start()
thread.join()
raise ValueError("end \\x1b[3m\\u202e \\udcff")
"""
    environment = {"PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 1
    said = done.stderr.decode(encoding)
    for words in (r"warning \x1b[1m", r"log \x9b1m", r"thread \x1b[2m", r"end \x1b[3m\u202e \udcff"):
        assert words in said
    assert all(line.isprintable() for line in said.splitlines())
    assert said.count("ValueError: ") == 2
    assert done.stdout.decode(encoding).strip().startswith("5 ")
