"""Find the fenced blocks of the README and the documentation, and run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "workflows" / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
"""Pages of the documentation, relative to the repository."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(readme: str) -> list[tuple[str, str]]:
    """Yield the language and text of each fenced block."""
    return BLOCK.findall((ROOT / readme).read_text())


def block(readme: str, start: str) -> str:
    """Return the only block that starts with these words."""
    (found,) = [text for _, text in blocks(readme) if text.startswith(start)]
    return found


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, with the package's commands on the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    # a slow, busy machine takes long
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done
