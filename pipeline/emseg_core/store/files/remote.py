"""Files on object stores and web servers, through obstore, which is an extra.

Reading a volume lists nothing. Requests are signed with the credentials in the environment, else with those of an AWS
profile. Without any they are anonymous: obstore would otherwise ask the machine for the credentials of its role, and hang
where that service does not exist.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import ObjectStore

from emseg_core.errors import VolumeError
from emseg_core.store.files.credentials import CredentialsError, profile_config
from emseg_core.store.files.extras import load_extra
from emseg_core.store.files.faults import StoreError, store_unavailable
from emseg_core.store.files.ownership import OwnedFiles
from emseg_core.store.files.place import ZARR_JSON, Address

if TYPE_CHECKING:
    from obstore.store import RetryConfig

ByteRange: TypeAlias = tuple[int, int] | dict[Literal["offset", "suffix"], int] | None
"""Bytes of an object: from one up to another, from one to the end, a number of them at the end, or (None) all."""

CREDENTIAL_VARIABLES = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    ),
    "gs": (
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SKIP_SIGNATURE",
    ),
}
"""Environment variables of obstore, each of which decides with whose permissions to read."""
SHORT_RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""For a short outage; a longer one is left to the run, which retries its blocks."""
LONG_RETRIES: RetryConfig = {
    "max_retries": 60,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
"""For writing a computed block, and for looking up what exists before a whole run."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 3.0
"""Seconds between two attempts to write an object, at first and at most."""
MAX_CACHED_INDICES = 64
"""Most shards of a volume whose index is kept in memory."""
LIST_PAGE_SIZE = 1000
"""Objects that one request lists or deletes."""
MAX_CONCURRENT_REQUESTS = 16
"""Most requests in progress at once."""
REQUEST_TIMEOUT = timedelta(seconds=60)
"""For a whole request: a large chunk needs that long on a slow line."""
MAX_METADATA_BYTES = 2**24
"""Most bytes of a metadata file of Zarr, N5 or a precomputed volume."""


class TooLongError(ValueError):
    """A file is longer than any valid one."""


def refuse_too_long(name: str, size: int, most: int) -> None:
    """Check that a file has at most `most` bytes.

    Parameters
    ----------
    name
        Name of the file, for the message.
    size
        Its size in bytes.
    most
        Largest size allowed, in bytes.

    Raises
    ------
    TooLongError
        If it has more.
    """
    if size > most:
        raise TooLongError(f"the file {name} has {size} bytes, but at most {most} are valid")


class RemoteFiles(OwnedFiles, ObjectStore[Any]):
    """Objects below an address, by names that may contain ``/``.

    All methods raise `StoreError` if the store refuses or is unavailable. Those that change objects raise `OrphanError` if
    the objects have an owner that has lost them. For Zarr's reads, an empty or truncated object is an error.
    """

    def __init__(
        self, store: Any, store_without_retries: Any, place: Address, *, patient: bool, cached_indices: int, owner: bytes | None
    ) -> None:
        """Use two clients of the same store. One of them does not retry."""
        super().__init__(store, read_only=True)
        self._store_without_retries = store_without_retries
        self.owner = owner
        self.place = place
        """Address that all names are relative to."""
        self._patient = patient
        self._cached_indices = cached_indices
        self._ends: dict[str, asyncio.Task[Buffer | None]] = {}
        """Ends of recently read shards, which contain their indices; used only in zarr's event loop."""

    def __reduce__(self) -> tuple[Callable[..., RemoteFiles], tuple[object, ...]]:
        """Pickle the address alone: the process that unpickles it uses its own credentials."""
        reopen = partial(open_remote, patient=self._patient, cached_indices=self._cached_indices, owner=self.owner)
        return reopen, (self.place,)

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is no such object.

        Parameters
        ----------
        name
            Name of the object.

        Returns
        -------
        bytes or None
            The content.
        """
        with suppress(FileNotFoundError), _translating_errors():
            return bytes(self.store.get(name).bytes())
        return None

    def read_metadata(self, name: str) -> bytes | None:
        """Return the content of a metadata object; None if there is no such object.

        Parameters
        ----------
        name
            Name of the object.

        Returns
        -------
        bytes or None
            The content.

        Raises
        ------
        TooLongError
            If it has more than `MAX_METADATA_BYTES` bytes.
        """
        with suppress(FileNotFoundError), _translating_errors():
            found = self.store.get(name)
            refuse_too_long(name, found.meta["size"], MAX_METADATA_BYTES)
            return bytes(found.bytes())
        return None

    def is_missing(self, name: str, beside: str) -> bool:
        """Return whether an object is missing although the object `beside`, which is looked up first, exists.

        Parameters
        ----------
        name
            Name of the object.
        beside
            Name of an object that always exists.

        Returns
        -------
        bool
            True if only `beside` exists.

        Raises
        ------
        StoreError
            If `beside` does not exist, which says nothing about the other.
        """
        if self.read(beside) is None:
            raise store_unavailable()
        return self.read_range(name, (0, 1)) is None

    def read_range(self, name: str, asked: ByteRange) -> tuple[bytes, int, int] | None:
        """Read some bytes of an object.

        Parameters
        ----------
        name
            Name of the object.
        asked
            Which bytes.

        Returns
        -------
        tuple of bytes, int and int, or None
            The bytes, the offset of the first, and the size of the whole object; None if there is no such object.
        """
        with suppress(FileNotFoundError), _translating_errors():
            found = self.store.get(name, options=None if asked is None else {"range": asked})
            return bytes(found.bytes()), found.range[0], found.meta["size"]
        return None

    def reading(self, name: str) -> IO[bytes]:
        """Open an object to be read piece by piece; all of it is loaded into memory.

        Returns
        -------
        binary file
            The content.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        """
        with _translating_errors():
            return io.BytesIO(self.store.get(name).bytes())

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if there is no such object.

        Parameters
        ----------
        name
            Name of the object.

        Returns
        -------
        int or None
            Bytes.
        """
        with suppress(FileNotFoundError), _translating_errors():
            return int(self.store.head(name)["size"])
        return None

    def put(self, name: str, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> str:
        """Write an object atomically.

        The owner is checked and `permit` called before each request, so none starts after another run has taken over.

        Parameters
        ----------
        permit
            Called before each request; may raise to prevent it.

        Returns
        -------
        str
            Tag of the object, as `tags` lists it.

        Raises
        ------
        OrphanError
            If the objects belong to another run by now.
        StoreError
            If the store refuses, or is unavailable.
        """
        retries = LONG_RETRIES if self._patient else SHORT_RETRIES
        end, pause = monotonic() + retries["retry_timeout"].total_seconds(), FIRST_PAUSE_SECONDS
        while True:
            self.check_owner()
            if permit is not None:
                permit()
            try:
                with _translating_errors():
                    return _tag(self._store_without_retries.put(name, document, use_multipart=False))
            except StoreError as error:
                if error.permanent or monotonic() > end:
                    raise
            sleep(pause)
            pause = min(2 * pause, MAX_PAUSE_SECONDS)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Open an object to be written piece by piece; it is sent when the ``with`` ends.

        Parameters
        ----------
        name
            Name of the object.

        Yields
        ------
        binary file
            A temporary file.

        Raises
        ------
        OrphanError
            If the objects belong to another run by now.
        StoreError
            If the store refuses, or is unavailable.
        """
        with tempfile.TemporaryFile() as stream:
            yield stream
            stream.seek(0)
            self.check_owner()
            with _translating_errors():
                self.store.put(name, stream)

    def create(self, name: str, document: bytes) -> bool:
        """Create an object unless one of this name exists.

        Parameters
        ----------
        name
            Name of the object.
        document
            Content of the object.

        Returns
        -------
        bool
            Whether this caller has created it.

        Raises
        ------
        OrphanError
            If the objects belong to another run by now.
        StoreError
            If the store refuses, is unavailable, or does not support conditional requests.
        """
        self.check_owner()
        if not self._create(name, document):
            return self.read(name) == document  # an earlier attempt succeeded, but its answer was lost
        if self._create(name, document):
            cause = "it does not support If-None-Match, which keeps two runs from writing to the same output"
            raise StoreError(cause, "choose one that does, as S3, Google Cloud Storage and MinIO do", permanent=True)
        return True

    def _create(self, name: str, document: bytes) -> bool:
        """Try once to create an object; return whether there was none of this name."""
        import obstore

        with _translating_errors():
            try:
                self.store.put(name, document, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def modified(self, name: str) -> float | None:
        """Return when an object was last written, in seconds by the clock of the store; None if there is no such object.

        Parameters
        ----------
        name
            Name of the object.

        Returns
        -------
        float or None
            Seconds.
        """
        with suppress(FileNotFoundError), _translating_errors():
            return float(self.store.head(name)["last_modified"].timestamp())
        return None

    def clock(self, folder: str) -> float:
        """Return the current time of that clock, by creating an object in a folder for a moment.

        Parameters
        ----------
        folder
            Folder that the object is created in.

        Returns
        -------
        float
            Seconds.
        """
        probe = f"{folder}/.emseg-{secrets.token_hex(6)}"
        self.put(probe, b"now")
        now = self.modified(probe)
        self.remove(probe)
        return now or 0.0

    def entries(self, folder: str = "") -> list[str]:
        """Return the names of the objects and folders in a folder, sorted; none if there is no such folder.

        Parameters
        ----------
        folder
            Name of the folder; empty for the root.

        Returns
        -------
        list of str
            Names without the path.
        """
        with _translating_errors():
            found = self.store.list_with_delimiter(folder or None)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of all objects that begin with `prefix`, sorted, except hidden ones.

        Parameters
        ----------
        prefix
            Prefix of the names.

        Returns
        -------
        list of str
            Names of objects.
        """
        folder, slash, start = prefix.rpartition("/")
        found: list[str] = []
        for entry in self.entries(folder):
            if entry.startswith(start):
                name = f"{folder}{slash}{entry}"
                found += [f"{name}/{inside}" for inside, _ in self.sizes(name)] or [name]
        return sorted(name for name in found if not PurePosixPath(name).name.startswith("."))

    def sizes(self, folder: str, *, tidy: bool = False) -> Iterator[tuple[str, int]]:  # noqa: ARG002  nothing is half-written
        """List the objects below a folder with their sizes; each request lists a thousand.

        Parameters
        ----------
        folder
            Name of the folder.
        tidy
            Has no effect: nothing is half-written.

        Yields
        ------
        tuple of str and int
            Name within the folder, and size in bytes.
        """
        return ((name, found["size"]) for name, found in self._listed(folder))

    def tags(self, folder: str) -> Iterator[tuple[str, str]]:
        """List the objects below a folder with their tags.

        Parameters
        ----------
        folder
            Name of the folder.

        Yields
        ------
        tuple of str and str
            Name within the folder, and tag, which differs for different bytes; empty if the store has none.
        """
        return ((name, _tag(found)) for name, found in self._listed(folder))

    def _listed(self, folder: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """List the objects below a folder: their names within it, and the store's metadata of them."""
        with _translating_errors():
            for some in self.store.list(folder, chunk_size=LIST_PAGE_SIZE):
                yield from ((found["path"].removeprefix(f"{folder}/"), found) for found in some)

    def tidy(self, folder: str = "", *, deep: bool = True) -> None:
        """Do nothing: an object that a killed writer had not sent completely never existed."""

    def remove(self, name: str) -> None:
        """Remove an object, if it exists.

        Parameters
        ----------
        name
            Name of the object.
        """
        self.check_owner()
        with suppress(FileNotFoundError), _translating_errors():
            self.store.delete(name)

    def remove_all(self, folder: str) -> None:
        """Remove all objects below a folder.

        Parameters
        ----------
        folder
            Name of the folder.
        """
        self.check_owner()
        names = [f"{folder}/{name}" for name, _ in self.sizes(folder)]
        for first in range(0, len(names), LIST_PAGE_SIZE):
            with _translating_errors():
                self.store.delete(names[first : first + LIST_PAGE_SIZE])

    def rename(self, name: str, to: str) -> None:
        """Rename an object, replacing any object of the new name.

        Parameters
        ----------
        name
            Name of the object.
        to
            Its new name.
        """
        self.check_owner()
        with _translating_errors():
            self.store.copy(name, to)
            self.store.delete(name)

    def rename_all(self, folder: str, to: str) -> None:
        """Rename a Zarr node with its content. The new name must not exist.

        Its metadata are copied last and removed first, so an interrupted call can be repeated to finish it.

        Parameters
        ----------
        folder
            Name of the node.
        to
            Its new name.
        """
        self.check_owner()
        names = [name for name, _ in self.sizes(folder) if name != ZARR_JSON]
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as threads, _translating_errors():
            list(threads.map(lambda name: self._copy(f"{folder}/{name}", f"{to}/{name}"), names))
            self.store.copy(f"{folder}/{ZARR_JSON}", f"{to}/{ZARR_JSON}")
        self.remove(f"{folder}/{ZARR_JSON}")
        self.remove_all(folder)

    def _copy(self, name: str, to: str) -> None:
        self.check_owner()
        self.store.copy(name, to)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of an object for Zarr; None if there is no such object.

        Raises
        ------
        ValueError
            If the object is empty, or ends before the bytes that are asked for.
        """
        if isinstance(byte_range, SuffixByteRequest):
            return await self._end(key, prototype, byte_range)
        return await self._get(key, prototype, byte_range)

    async def _end(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest) -> Buffer | None:
        """Read the end of an object once for all who ask for it at the same time or soon after."""
        task = self._ends.pop(key, None) or asyncio.ensure_future(self._get(key, prototype, byte_range))
        self._ends[key] = task
        if len(self._ends) > max(self._cached_indices, MAX_CONCURRENT_REQUESTS):
            del self._ends[next(iter(self._ends))]
        found = None
        try:
            found = await asyncio.shield(task)
        finally:
            if (found is None or not self._cached_indices) and self._ends.get(key) is task:
                del self._ends[key]
        return found

    async def _get(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest | None) -> Buffer | None:
        import obstore

        try:
            found = await super().get(key, prototype or default_buffer_prototype(), byte_range)
        except obstore.exceptions.BaseError as error:
            # the store does not support ranges, or the range is beyond the object's end
            whole = isinstance(error, obstore.exceptions.NotSupportedError)
            if whole or re.search("status code: 416|non-partial response", str(error)):
                raise ValueError(
                    f"the object {key} is empty or too short, or its store does not support range requests"
                ) from error
            raise _store_error(error) from error
        if found is None:
            return None
        if len(found) == 0:
            raise ValueError(f"the object {key} is empty")
        if isinstance(byte_range, RangeByteRequest) and len(found) < byte_range.end - byte_range.start:
            raise ValueError(
                f"the object {key} has {byte_range.start + len(found)} bytes, but should have at least {byte_range.end}"
            )
        return found


def _tag(found: Mapping[str, Any]) -> str:
    """Return the tag of an object, without the quotes that some stores add."""
    return (found["e_tag"] or "").strip('"')


def open_remote(address: Address, *, patient: bool = False, cached_indices: int = 0, owner: bytes | None = None) -> RemoteFiles:
    """Open the objects below an address.

    Parameters
    ----------
    patient
        Retry for a minute, not only for seconds, if the store does not answer.
    cached_indices
        Most shards whose index is kept in memory; 0 for objects that may be rewritten in the meantime.
    owner
        Content that the identity file must have before anything is changed; None to skip the check.

    Returns
    -------
    RemoteFiles
        The objects; no request has been made yet.

    Raises
    ------
    VolumeError
        If obstore is not installed or does not accept a setting in the environment, or the AWS profile cannot be used.
    """
    store = load_extra("obstore.store", "remote", address)
    access: Mapping[str, Any] = {}
    if address.scheme in CREDENTIAL_VARIABLES and not any(map(os.environ.get, CREDENTIAL_VARIABLES[address.scheme])):
        access = (profile_config(address) if address.scheme == "s3" else None) or {"skip_signature": True}

    def open_client(retries: RetryConfig) -> Any:
        if address.scheme in ("http", "https"):
            client = {"timeout": REQUEST_TIMEOUT, "allow_http": address.scheme == "http"}
            return store.HTTPStore.from_url(str(address), client_options=client, retry_config=retries)
        kind = store.S3Store if address.scheme == "s3" else store.GCSStore
        # passed as an option of its own: with `client_options`, obstore would ignore those in the environment
        return kind(address.host, prefix=address.key or None, retry_config=retries, timeout=REQUEST_TIMEOUT, **access)

    try:
        client = open_client(LONG_RETRIES if patient else SHORT_RETRIES)
        without_retries = open_client({**SHORT_RETRIES, "max_retries": 0})
        return RemoteFiles(client, without_retries, address, patient=patient, cached_indices=cached_indices, owner=owner)
    except Exception as error:  # each kind of store raises errors of its own for settings that it does not accept
        raise VolumeError(f"{address} cannot be opened ({_first_line(error)}): check it, and the environment") from error


@contextmanager
def _translating_errors() -> Iterator[None]:
    """Turn what obstore raises within the ``with`` into a `StoreError`, except that an object does not exist."""
    import obstore

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise
        raise _store_error(error) from error
    except obstore.exceptions.BaseError as error:
        raise _store_error(error) from error


def _store_error(error: Exception) -> StoreError:
    """Summarise an error of obstore, whose own text fills a page."""
    import obstore

    whole = str(error)
    if "NoSuchBucket" in whole:
        return StoreError("there is no such bucket", "check its spelling, and AWS_ENDPOINT_URL if that is set", permanent=True)
    if unresolved := re.search(rf"{CredentialsError.__name__}: ([^\n]*)", whole):
        cause, _, remedy = unresolved[1].partition(": ")
        return StoreError(cause, remedy)
    if re.search(r"<Code>(ExpiredToken|ExpiredTokenException|TokenRefreshRequired)</Code>", whole):
        return StoreError("the credentials have expired", "sign in again; those in the environment are read at the start")
    denied = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
    if isinstance(error, denied) or _status(whole).startswith(("401", "403")):
        remedy = "set credentials that permit it, such as AWS_PROFILE, AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS"
        return StoreError(_status(whole) or "access denied", remedy, permanent=True)
    if "redirect without LOCATION" in whole:
        return StoreError("the bucket is in another region", "set AWS_REGION to that")
    if "builder error" in whole:
        remedy = "if that is meant, set AWS_ALLOW_HTTP=true or GOOGLE_ALLOW_HTTP=true"
        return StoreError("the store is on http, not https", remedy)
    system = re.findall(r'(?:message|error): "([^"]+)"', whole)
    timed_out = "it does not answer" if "kind: Timeout" in whole else ""
    cause = _status(whole) or timed_out or (system[-1] if system else _first_line(error))
    return StoreError(cause, "check the address, the network, and AWS_ENDPOINT_URL if that is set")


def _status(whole: str) -> str:
    """Return the HTTP status in an error of obstore, with the store's own code; empty if there is none."""
    found = re.search(r"status code: (\d+ [A-Za-z -]+)", whole)
    code = re.search(r"<Code>(\w+)</Code>", whole)
    return found[1].strip() + (f", {code[1]}" if code else "") if found else ""


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without the prefixes that obstore adds."""
    return str(error).partition("\n")[0].rpartition(" - ")[2][:300]
