"""Credentials of AWS profiles, which expire: each process resolves its own with botocore, which is an extra."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from emseg_core.errors import VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.files.place import Address

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential

Profile: TypeAlias = Mapping[str, Any]
"""Settings of a profile, as the configuration files state them."""

PROFILE_VARIABLES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")
"""Environment variables that name a profile; the first wins, as in botocore."""
PROFILE_FILES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
"""Files that hold profiles, by the environment variables that name other ones."""
SIGN_IN_COMMANDS = {"sso_session": "aws sso login", "sso_start_url": "aws sso login", "login_session": "aws login"}
"""Settings of profiles that require a sign-in, each with the command for it."""
CREDENTIAL_SETTINGS = {"aws_access_key_id", "credential_process", "role_arn", *SIGN_IN_COMMANDS}
"""Settings of a profile, each of which states where its credentials come from."""
RENEWAL_SECONDS = 60.0
"""Time before their expiry from which credentials are renewed; those without an expiry are read again that often."""
MIN_INTERVAL_SECONDS = 2.0
"""Least time between two attempts to resolve credentials, each of which may start a process."""
MAX_RESOLUTION_SECONDS = 20.0
"""Time after which an attempt has failed: a process may wait for an answer that never comes."""


class CredentialsError(Exception):
    """A profile has no valid credentials now. The message is the cause, a colon, and the remedy."""


@dataclass(frozen=True, slots=True, repr=False)
class _Resolved:
    """Credentials as botocore has resolved them."""

    source: Any
    keys: Any

    def expires_within(self, seconds: float) -> bool:
        """Return whether so much time or less is left; False for credentials without an expiry."""
        needed: Callable[..., bool] | None = getattr(self.source, "refresh_needed", None)
        return needed is not None and needed(refresh_in=seconds)

    @property
    def temporary(self) -> bool:
        """Whether they state when they expire."""
        return hasattr(self.source, "refresh_needed")


class ProfileCredentials:
    """The credentials of an AWS profile, renewed before they expire: a credential provider for obstore.

    They stay in the memory of this process. Each renewal reads the files of AWS again, and so finds the changes of a sign-in.
    """

    def __init__(self, name: str) -> None:
        """Name a profile; nothing is resolved yet."""
        self._name = name
        self._lock = Lock()
        self._resolved: _Resolved | None = None
        self._attempted_at: float | None = None
        self._failure: Exception | None = None

    def __call__(self) -> S3Credential:
        """Return credentials that are valid now.

        Returns
        -------
        dict
            The credentials. obstore asks for them again at its next request.

        Raises
        ------
        CredentialsError
            If there are none.
        """
        with self._lock:
            if self._renewal_due():
                self._renew()
            if self._resolved is None or self._resolved.expires_within(0):
                raise self._error()
            keys = self._resolved.keys
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC),  # obstore would keep them until five minutes before their expiry, or for ever
        }

    def _renewal_due(self) -> bool:
        """Return whether it is time for another attempt."""
        if self._attempted_at is None:
            return True
        elapsed = monotonic() - self._attempted_at
        if self._resolved is None or self._failure is not None or self._resolved.expires_within(RENEWAL_SECONDS):
            return elapsed >= MIN_INTERVAL_SECONDS
        return elapsed >= RENEWAL_SECONDS and not self._resolved.temporary

    def _renew(self) -> None:
        """Attempt to resolve the credentials; those that are held are kept if that fails."""
        self._failure = None
        resolution: Future[_Resolved] = Future()
        # not a pool, whose threads the interpreter waits for at its end
        Thread(target=_fulfil, args=(resolution, self._name), daemon=True).start()
        try:
            self._resolved = resolution.result(MAX_RESOLUTION_SECONDS)
        except Exception as error:  # a profile can involve processes, services and files, which fail in any way
            self._failure = error
        self._attempted_at = monotonic()

    def _error(self) -> CredentialsError:
        """Return the error for a profile without valid credentials; what a process printed may be secret."""
        if self._resolved is not None:
            cause = f"the credentials of the AWS profile {self._name!r} have expired"
        elif isinstance(self._failure, TimeoutError):
            cause = f"the AWS profile {self._name!r} gave no credentials within {MAX_RESOLUTION_SECONDS:.0f} s"
        else:
            cause = f"the AWS profile {self._name!r} has no valid credentials"
        return CredentialsError(f"{cause}: {_sign_in(self._name)}")


def profile_config(address: Address) -> dict[str, Any] | None:
    """Return how obstore is to use the AWS profile that the environment names, else the default one.

    Parameters
    ----------
    address
        Place to be opened, for messages.

    Returns
    -------
    dict or None
        Options of obstore: the provider of the credentials, and the region and the endpoint if the profile states them and
        the environment does not. None if no profile is named and the default one has no credentials.

    Raises
    ------
    VolumeError
        If the profile cannot be used.
    """
    named = next(filter(None, map(os.environ.get, PROFILE_VARIABLES)), None)
    files = tuple(str(Path(os.environ.get(variable) or file).expanduser()) for variable, file in PROFILE_FILES.items())
    if named is None and not any(map(os.path.exists, files)):
        return None
    name = named or "default"
    anonymously = "or set AWS_SKIP_SIGNATURE=true for anonymous requests"
    if find_spec("botocore") is None:
        if named is None:
            return None
        what = f"{address} cannot be opened (the AWS profile {name!r} is read with botocore, which is not installed)"
        raise VolumeError(f"{what}: {install_hint('aws')}, {anonymously}")
    chain = _profile_chain(name)
    if not any(CREDENTIAL_SETTINGS & set(profile) for profile in chain):
        if named is None:
            return None
        problem = "states no credentials" if chain else "does not exist"
        what = f"{address} cannot be opened (the AWS profile {name!r} {problem} in {' or '.join(files)})"
        raise VolumeError(f"{what}: check {' and '.join(PROFILE_VARIABLES)}, {anonymously}")
    if any("mfa_serial" in profile for profile in chain):
        what = f"{address} cannot be opened (the AWS profile {name!r} asks for a code, which workers cannot type)"
        raise VolumeError(f"{what}: put `aws configure export-credentials --profile {shlex.quote(name)}` into the environment")
    config: S3Config = {}
    if "region" in chain[0] and not any(map(os.environ.get, ("AWS_REGION", "AWS_DEFAULT_REGION"))):
        config["region"] = chain[0]["region"]
    if "endpoint_url" in chain[0] and not any(map(os.environ.get, ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"))):
        config["endpoint"] = chain[0]["endpoint_url"]
    return {"credential_provider": _shared_credentials(name, files), **config}


@cache
def _shared_credentials(name: str, files: tuple[str, ...]) -> ProfileCredentials:  # noqa: ARG001  part of the key
    """Return the credentials of a profile, which a process shares among everything that it opens."""
    logging.getLogger("botocore").addHandler(logging.NullHandler())  # otherwise its warnings are printed with tracebacks
    return ProfileCredentials(name)


def _fulfil(resolution: Future[_Resolved], name: str) -> None:
    """Resolve the credentials of a profile for another thread."""
    try:
        resolution.set_result(_resolve(name))
    except Exception as error:  # raised again in that thread
        resolution.set_exception(error)


def _resolve(name: str) -> _Resolved:
    """Resolve the credentials of a profile."""
    from botocore.exceptions import NoCredentialsError
    from botocore.session import Session

    session = Session(profile=name)
    # the role of the machine is asked for only where a profile says so: elsewhere its service may not answer
    session.get_component("credential_provider").remove("iam-role")
    source = session.get_credentials()
    if source is None:
        raise NoCredentialsError
    return _Resolved(source, source.get_frozen_credentials())


def _profile_chain(name: str) -> list[Profile]:
    """Return the settings of a profile and of those whose credentials it uses; none if it does not exist.

    Raises
    ------
    VolumeError
        If a file of AWS cannot be parsed.
    """
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        config = Session(profile=name).full_config
    except BotoCoreError as error:
        raise VolumeError(f"the AWS profile {name!r} cannot be read ({error}): correct that file") from error
    chain: list[Profile] = []
    following: str | None = name
    while following in config["profiles"] and config["profiles"][following] not in chain:
        chain.append(config["profiles"][following])
        following = chain[-1].get("source_profile")
    return chain


def _sign_in(name: str) -> str:
    """Return how to make the credentials of a profile valid again."""
    try:
        settings = {setting for profile in _profile_chain(name) for setting in profile}
    except VolumeError:
        settings = set()
    option = f"--profile {shlex.quote(name)}"
    if command := next((SIGN_IN_COMMANDS[setting] for setting in SIGN_IN_COMMANDS if setting in settings), ""):
        return f"sign in again with `{command} {option}`"
    return f"sign in again; `aws sts get-caller-identity {option}` says what is wrong"
