"""An AWS profile whose credential process returns short-lived credentials while a user is signed in."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROFILE = "lab"
SECRET = "kept-to-the-process"
"""The secret key, which must never be shown."""
PROCESS = """
import json, sys, time
from datetime import UTC, datetime
from pathlib import Path

folder = Path(sys.argv[1])
with (folder / "calls").open("a") as calls:
    calls.write("called\\n")
if not (folder / "signed-in").exists():
    sys.exit("sign in, {secret}")
end = time.time() + float((folder / "signed-in").read_text())
expiration = datetime.fromtimestamp(end, UTC).isoformat()
print(json.dumps(dict(Version=1, AccessKeyId="test", SecretAccessKey="{secret}", SessionToken=str(end), Expiration=expiration)))
"""


@dataclass(slots=True)
class SignIn:
    """A sign-in, whose tokens state when they expire."""

    folder: Path
    tokens: set[str] = field(default_factory=set)
    """The tokens that requests were signed with."""

    def begin(self, seconds: float) -> None:
        """Give credentials with this lifetime from now on."""
        (self.folder / "signed-in").write_text(str(seconds))

    def end(self) -> None:
        """Give no credentials from now on."""
        (self.folder / "signed-in").unlink()

    @property
    def calls(self) -> int:
        """Return how often the process was started."""
        return len((self.folder / "calls").read_text().splitlines()) if (self.folder / "calls").exists() else 0

    def expired(self, token: str) -> bool:
        """Return whether a token has expired or is not from this sign-in."""
        self.tokens.add(token)
        return not token or float(token) < time.time()


def use_profile(folder: Path, patch: pytest.MonkeyPatch, *more: str) -> SignIn:
    """Select the profile in the environment, in place of keys. `more` are lines of its configuration."""
    (folder / "process.py").write_text(PROCESS.replace("{secret}", SECRET))
    process = f"credential_process = '{sys.executable}' '{folder / 'process.py'}' '{folder}'"
    write_config(folder, patch, f"[profile {PROFILE}]", process, *more)
    patch.setenv("AWS_PROFILE", PROFILE)
    return SignIn(folder)


def write_config(folder: Path, patch: pytest.MonkeyPatch, *lines: str) -> None:
    """Write these lines as the whole configuration. The environment has no keys."""
    (folder / "config").write_text("\n".join((*lines, "")))
    patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        patch.delenv(name, raising=False)
