#!/usr/bin/env bash
# openvino 2026.4.1 on Linux: a thread that compiles with two cores in turn, and lets go of the first before the second, is left
# with a freed stack for signal handlers.
#
# The CPU plugin of each core sets the alternate signal stack (sigaltstack) of the thread that makes it, and at its end sets the
# one that it found there. The second plugin therefore restores that of the first, which is no longer mapped. A handler with
# SA_ONSTACK, as Python's own, would then run there. One core that lives as long as the process avoids it. No signal is sent
# here: the script only reads the address, and looks it up among the mappings of the process. Seen with Python 3.11 and 3.13.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/stack.py" <<'PYTHON'
import ctypes
from pathlib import Path

import numpy as np
import openvino
from openvino import opset13 as ops


class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def state():
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    if not stack.start:
        return "none"
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    mapped = any(int(first, 16) <= stack.start < int(end, 16) for first, end in spans)
    return "mapped" if mapped else "not mapped"


def compiled():
    given = ops.parameter([1, 4], np.float32)
    return openvino.Core().compile_model(openvino.Model([ops.relu(given)], [given]), "CPU")


print("at first:", state())
first = compiled()
print("one core:", state())
second = compiled()
print("two cores:", state())
del first
print("first gone:", state())
del second
print("both gone:", state())
PYTHON
"$folder/venv/bin/pip" install --quiet 'openvino==2026.4.1'
seen=$("$folder/venv/bin/python" "$folder/stack.py")
echo "$seen"
[ "$(tail -1 <<< "$seen")" = 'both gone: not mapped' ]
