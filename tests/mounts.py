"""Run emseg where a folder is a small, full or read-only file system, in a namespace of mounts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import path_of


def with_mount(options: str, place: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a module of Python where a tmpfs with these options is mounted at a place; skip the test if that cannot be."""
    spaces = [path_of("unshare"), "--mount", "--propagation=private"]
    if os.geteuid() != 0:
        spaces += ["--user", "--map-root-user"]
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if subprocess.run([*spaces, *mount], capture_output=True).returncode:
        pytest.skip("no namespaces of mounts here")
    inside = '"${@:1:7}" && shift 7 && exec "$@"'
    words = [*spaces, "bash", "-c", inside, "mount", *mount, sys.executable, "-m", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)
