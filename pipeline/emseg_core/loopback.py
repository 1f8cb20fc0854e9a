"""Keep connections to this machine away from proxies."""

from __future__ import annotations

import os

OWN_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names and addresses of this machine for itself."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
EXCEPTIONS = ("no_proxy", "NO_PROXY")
"""Libraries differ in which one they prefer."""


def exclude_loopback_from_proxies() -> None:
    """Add this machine to the exceptions from the proxies in the environment, if it names any.

    A proxy would look for the address on its own machine. Processes started from this one inherit the exceptions.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    given = next((value for name in EXCEPTIONS if (value := os.environ.get(name))), "")
    names = [name.strip() for name in given.split(",") if name.strip()]
    if "*" in names:
        return
    for name in EXCEPTIONS:
        os.environ[name] = ",".join([*names, *(own for own in OWN_NAMES if own not in names)])
