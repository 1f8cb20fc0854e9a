"""Object stores and web servers, with obstore, an extra.

To read a volume, nothing is listed. Requests are signed with the credentials in the environment; where it has none they are
anonymous, as obstore would else ask the machine for those of its role, and wait where there is no such thing.
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
from pathlib import PurePosixPath
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore

from emseg.errors import VolumeError
from emseg.store.blame import StoreError, away
from emseg.store.extras import load_extra
from emseg.store.ownership import Owned
from emseg.store.place import Address

if TYPE_CHECKING:
    from obstore.store import RetryConfig

Part: TypeAlias = tuple[int, int] | dict[Literal["offset", "suffix"], int] | None
"""From one byte up to another, from a byte to the end, so many at the end, or all of an object."""

CREDENTIALS = {
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
"""Variables of the environment of which one says with whose right to read; each is obstore's."""
RETRIES: RetryConfig = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}
"""For a hiccup; what lasts longer is left to the run, which tries its blocks again."""
PATIENT: RetryConfig = {
    "max_retries": 60,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
"""Where a block that has been computed waits to be written, or a whole run to be told what is there."""
PAUSE, LONGEST_PAUSE = 0.1, 3.0
"""Seconds between two tries to put an object, at first and at most."""
ENDS = 64
"""Most shards of a volume whose index is kept."""
LISTED = 1000
"""Objects that one request lists, or removes."""
AT_ONCE = 16
"""Most requests at once."""
NODE = "zarr.json"
"""Metadata of a Zarr node."""
TIMEOUT = timedelta(seconds=60)
"""For a whole request: as long as a large chunk needs on a slow line."""


MOST_METADATA = 2**24
"""Most bytes of the metadata of Zarr, of N5 or of a precomputed volume."""


class TooLongError(ValueError):
    """A file has more bytes than it can have."""


def refuse_long(name: str, size: int, most: int) -> None:
    """Raises `TooLongError` if a file has more than `most` bytes."""
    if size > most:
        raise TooLongError(f"the file {name} has {size} bytes, but no more than {most} can be right")


class RemoteFiles(Owned, ObjectStore[Any]):
    """The objects below an address, by names with ``/`` in them. All raise `StoreError` if the store refuses, or is away.

    To Zarr, none of them is empty or ends within what is read of it. Whatever changes them raises `OrphanError` if they have
    an owner who has lost them.
    """

    def __init__(self, store: Any, once: Any, place: Address, *, patient: bool, ends: int, owner: bytes | None) -> None:
        """A request to `once` is not made again."""
        super().__init__(store, read_only=True)
        self._once = once
        self.owner = owner
        self.place = place
        """What they are below."""
        self._patient = patient
        self._most_ends = ends
        self._ends: dict[str, asyncio.Task[Buffer | None]] = {}
        """Of shards that were read a short while ago, the ends, which hold their indices; used in zarr's event loop alone."""

    def __reduce__(self) -> tuple[Callable[..., RemoteFiles], tuple[object, ...]]:
        """Whoever gets it opens it with credentials of its own."""
        return _open, (self.place, self._patient, self._most_ends, self.owner)

    def read(self, name: str) -> bytes | None:
        """A whole object; None if it is not there."""
        with suppress(FileNotFoundError), _explaining():
            return bytes(self.store.get(name).bytes())
        return None

    def read_metadata(self, name: str) -> bytes | None:
        """A whole object of metadata; None if it is not there.

        Raises
        ------
        TooLongError
            If it has more than `MOST_METADATA` bytes.
        """
        with suppress(FileNotFoundError), _explaining():
            found = self.store.get(name)
            refuse_long(name, found.meta["size"], MOST_METADATA)
            return bytes(found.bytes())
        return None

    def lacks(self, name: str, beside: str) -> bool:
        """Whether an object is not there while the one `beside` is, which is looked for first.

        Raises
        ------
        StoreError
            If `beside` is not there, which says nothing about the other.
        """
        if self.read(beside) is None:
            raise away()
        return self.part(name, (0, 1)) is None

    def part(self, name: str, asked: Part) -> tuple[bytes, int, int] | None:
        """Part of an object, where it begins, and the bytes of the whole; None if it is not there."""
        with suppress(FileNotFoundError), _explaining():
            found = self.store.get(name, options=None if asked is None else {"range": asked})
            return bytes(found.bytes()), found.range[0], found.meta["size"]
        return None

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """An object to be read piece by piece; it is in memory.

        Raises
        ------
        FileNotFoundError
            If it is not there.
        """
        with _explaining():
            stream = io.BytesIO(self.store.get(name).bytes())
        yield stream

    def size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there."""
        with suppress(FileNotFoundError), _explaining():
            return int(self.store.head(name)["size"])
        return None

    def put(self, name: str, document: bytes | memoryview, permit: Callable[[], None] | None = None) -> str:
        """Put an object in its place, whole; `permit` is asked at the last moment and may raise. What `tags` will call it.

        Both `permit` and the owner are asked anew before each request, so none begins once somebody else has taken over.
        """
        retries = PATIENT if self._patient else RETRIES
        end, pause = monotonic() + retries["retry_timeout"].total_seconds(), PAUSE
        while True:
            self.check_owner()
            if permit is not None:
                permit()
            try:
                with _explaining():
                    return _tag(self._once.put(name, document, use_multipart=False))
            except StoreError as error:
                if error.lasting or monotonic() > end:
                    raise
            sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """An object to be written piece by piece; it is in its place, whole, when the ``with`` has ended."""
        with tempfile.TemporaryFile() as stream:
            yield stream
            stream.seek(0)
            self.check_owner()
            with _explaining():
                self.store.put(name, stream)

    def create(self, name: str, document: bytes) -> bool:
        """Put an object unless there is one of this name; whether this caller, and nobody else, has made it."""
        self.check_owner()
        if not self._create(name, document):
            return self.read(name) == document  # the answer to the first of several tries was lost
        if self._create(name, document):
            remedy = "choose one that does, as S3, Google Cloud Storage and MinIO do"
            raise StoreError("it does not keep to If-None-Match, by which runs exclude one another", remedy, lasting=True)
        return True

    def _create(self, name: str, document: bytes) -> bool:
        """Whether there was no object of this name, and is one now."""
        import obstore  # noqa: PLC0415

        with _explaining():
            try:
                self.store.put(name, document, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def modified(self, name: str) -> float | None:
        """When an object was put, in seconds by the clock of the store; None if it is not there."""
        with suppress(FileNotFoundError), _explaining():
            return float(self.store.head(name)["last_modified"].timestamp())
        return None

    def clock(self, folder: str) -> float:
        """What that clock says now; an object is made below a folder to find out."""
        probe = f"{folder}/.emseg-{secrets.token_hex(6)}"
        self.put(probe, b"now")
        now = self.modified(probe)
        self.remove(probe)
        return now or 0.0

    def entries(self, folder: str = "") -> list[str]:
        """Names of what is right in a folder, sorted; none if it is not there."""
        with _explaining():
            found = self.store.list_with_delimiter(folder or None)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def names(self, prefix: str = "") -> list[str]:
        """Names of all objects that begin with `prefix`, sorted, but for hidden ones."""
        folder, slash, start = prefix.rpartition("/")
        found: list[str] = []
        for entry in self.entries(folder):
            if entry.startswith(start):
                name = f"{folder}{slash}{entry}"
                found += [f"{name}/{inside}" for inside, _ in self.sizes(name)] or [name]
        return sorted(name for name in found if not PurePosixPath(name).name.startswith("."))

    def sizes(self, folder: str, *, tidy: bool = False) -> Iterator[tuple[str, int]]:  # noqa: ARG002  nothing is half-written
        """Name, within a folder, and bytes of each object below it; each request lists a thousand."""
        with _explaining():
            for some in self.store.list(folder, chunk_size=LISTED):
                for found in some:
                    yield found["path"].removeprefix(f"{folder}/"), found["size"]

    def tags(self, folder: str) -> Iterator[tuple[str, str]]:
        """Name, within a folder, and tag of each object below it: another one for other bytes; empty if the store has none."""
        with _explaining():
            for some in self.store.list(folder, chunk_size=LISTED):
                for found in some:
                    yield found["path"].removeprefix(f"{folder}/"), _tag(found)

    def tidy(self, folder: str = "", *, deep: bool = True) -> None:
        """Nothing: what a writer that was killed had not sent whole was never there."""

    def remove(self, name: str) -> None:
        """Remove an object, if there is one."""
        self.check_owner()
        with suppress(FileNotFoundError), _explaining():
            self.store.delete(name)

    def remove_all(self, folder: str) -> None:
        """Remove all below a folder."""
        self.check_owner()
        names = [f"{folder}/{name}" for name, _ in self.sizes(folder)]
        for first in range(0, len(names), LISTED):
            with _explaining():
                self.store.delete(names[first : first + LISTED])

    def rename(self, name: str, to: str) -> None:
        """Give an object another name, also one that an object had until then."""
        self.check_owner()
        with _explaining():
            self.store.copy(name, to)
            self.store.delete(name)

    def rename_all(self, folder: str, to: str) -> None:
        """Give a Zarr node with all that is in it another name, which none has.

        Its metadata are copied last and removed first: where it ended half-way, calling it again goes on.
        """
        self.check_owner()
        names = [name for name, _ in self.sizes(folder) if name != NODE]
        with ThreadPoolExecutor(AT_ONCE) as threads, _explaining():
            list(threads.map(lambda name: self._copy(f"{folder}/{name}", f"{to}/{name}"), names))
            self.store.copy(f"{folder}/{NODE}", f"{to}/{NODE}")
        self.remove(f"{folder}/{NODE}")
        self.remove_all(folder)

    def _copy(self, name: str, to: str) -> None:
        self.check_owner()
        self.store.copy(name, to)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if isinstance(byte_range, SuffixByteRequest):
            return await self._end(key, prototype, byte_range)
        return await self._get(key, prototype, byte_range)

    async def _end(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest) -> Buffer | None:
        """The end of an object, for all who ask for it at the same time or soon after."""
        task = self._ends.pop(key, None) or asyncio.ensure_future(self._get(key, prototype, byte_range))
        self._ends[key] = task
        if len(self._ends) > max(self._most_ends, AT_ONCE):
            del self._ends[next(iter(self._ends))]
        found = None
        try:
            found = await asyncio.shield(task)
        finally:
            if (found is None or not self._most_ends) and self._ends.get(key) is task:
                del self._ends[key]
        return found

    async def _get(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest | None) -> Buffer | None:
        import obstore  # noqa: PLC0415

        try:
            found = await super().get(key, prototype or default_buffer_prototype(), byte_range)
        except obstore.exceptions.BaseError as error:
            # a store that gives no parts at all, or none from beyond an object's end
            whole = isinstance(error, obstore.exceptions.NotSupportedError)
            if whole or re.search("status code: 416|non-partial response", str(error)):
                raise ValueError(f"the object {key} is empty or too short, or its store gives no part of an object") from error
            raise _explained(error) from error
        if found is None:
            return None
        if len(found) == 0:
            raise ValueError(f"the object {key} is empty")
        if isinstance(byte_range, RangeByteRequest) and len(found) < byte_range.end - byte_range.start:
            raise ValueError(f"the object {key} ends before the byte {byte_range.end} that it should have")
        return found


def _tag(found: Mapping[str, Any]) -> str:
    """The tag of an object, which some answers put in quotes."""
    return (found["e_tag"] or "").strip('"')


def open_remote(address: Address, *, patient: bool = False, ends: int = 0, owner: bytes | None = None) -> RemoteFiles:
    """What is below an address; no request is made yet.

    Parameters
    ----------
    patient
        Whether a store that does not answer is asked for a minute, not only for seconds.
    ends
        Most shards whose index is kept: none of what somebody may write meanwhile.
    owner
        What the file that names the owner must hold before anything is changed; None for anything.

    Raises
    ------
    VolumeError
        If obstore is not installed, or the environment says something that it does not take.
    """
    store = load_extra("obstore.store", "remote", address)

    def opened(retries: RetryConfig) -> Any:
        if address.scheme in ("http", "https"):
            client = {"timeout": TIMEOUT, "allow_http": address.scheme == "http"}
            return store.HTTPStore.from_url(str(address), client_options=client, retry_config=retries)
        kind = store.S3Store if address.scheme == "s3" else store.GCSStore
        # as one of its own options: with `client_options` it would not look for others in the environment
        options = {"timeout": TIMEOUT, **({} if _says_who(address.scheme) else {"skip_signature": True})}
        return kind(address.host, prefix=address.key or None, retry_config=retries, **options)

    try:
        found, once = opened(PATIENT if patient else RETRIES), opened({**RETRIES, "max_retries": 0})
        return RemoteFiles(found, once, address, patient=patient, ends=ends, owner=owner)
    except Exception as error:  # each kind of store has errors of its own for what it does not take
        raise VolumeError(f"{address} cannot be opened ({_first_line(error)}): check it, and the environment") from error


def _open(address: Address, patient: bool, ends: int, owner: bytes | None) -> RemoteFiles:
    return open_remote(address, patient=patient, ends=ends, owner=owner)


def _says_who(scheme: str) -> bool:
    """Whether the environment says with whose right to read."""
    return any(os.environ.get(name) for name in CREDENTIALS[scheme])


@contextmanager
def _explaining() -> Iterator[None]:
    """What obstore raises within the ``with``, as a `StoreError`, but for what is not there."""
    import obstore  # noqa: PLC0415

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise
        raise _explained(error) from error
    except obstore.exceptions.BaseError as error:
        raise _explained(error) from error


def _explained(error: Exception) -> StoreError:
    """An error of obstore in few words; its own fill a page."""
    import obstore  # noqa: PLC0415

    whole = str(error)
    if "NoSuchBucket" in whole:
        return StoreError("there is no such bucket", "check its spelling, and AWS_ENDPOINT_URL if that is set", lasting=True)
    denied = (obstore.exceptions.PermissionDeniedError, obstore.exceptions.UnauthenticatedError)
    if isinstance(error, denied) or _status(whole).startswith(("401", "403")):
        remedy = "set credentials with the right to it, such as AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS"
        return StoreError(_status(whole) or "access denied", remedy, lasting=True)
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
    """The HTTP status in an error of obstore, with the store's own code; empty if there is none."""
    found = re.search(r"status code: (\d+ [A-Za-z -]+)", whole)
    code = re.search(r"<Code>(\w+)</Code>", whole)
    return found[1].strip() + (f", {code[1]}" if code else "") if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rpartition(" - ")[2][:300]
