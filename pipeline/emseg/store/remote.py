"""Reading from object stores and web servers, with obstore, an extra.

Nothing is listed, and nothing written. Requests are signed with the credentials in the environment; where it has none they are
anonymous, as obstore would else ask the machine for those of its role, and wait where there is no such thing.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import ObjectStore

from emseg.errors import VolumeError
from emseg.store.extras import load_extra
from emseg.store.place import Address

if TYPE_CHECKING:
    from obstore.store import RetryConfig

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
ENDS = 64
"""Most shards whose index is kept."""
TIMEOUT = timedelta(seconds=60)
"""For a whole request: as long as a large chunk needs on a slow line."""


class StoreError(OSError):
    """A store did not give what it was asked for, and may do so later."""

    def __init__(self, cause: str, remedy: str, *, lasting: bool = False) -> None:
        super().__init__(errno.EIO, cause)
        self.remedy = remedy
        self.lasting = lasting
        """Whether it will say so again. Some stores refuse each object that is not there."""


class RemoteFiles(ObjectStore[Any]):
    """The objects below an address, none of which is empty or ends within what is read of it."""

    missed = 0
    """How many that were asked for were not there."""

    def __init__(self, store: Any, *, read_only: bool = True) -> None:
        super().__init__(store, read_only=read_only)
        self._ends: dict[str, asyncio.Task[Buffer | None]] = {}
        """Of shards that were read a short while ago, the ends, which hold their indices; used in zarr's event loop alone."""

    def read(self, name: str) -> bytes | None:
        """A whole object; None if it is not there.

        Raises
        ------
        StoreError
            If the store cannot be reached, or refuses.
        """
        import obstore  # noqa: PLC0415

        try:
            return bytes(obstore.get(self.store, name).bytes())
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                remedy = "check its spelling, and AWS_ENDPOINT_URL if that is set"
                raise StoreError("there is no such bucket", remedy, lasting=True) from error
            return None
        except obstore.exceptions.BaseError as error:
            raise _explained(error) from error

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if isinstance(byte_range, SuffixByteRequest):
            found = await self._end(key, prototype, byte_range)
        else:
            found = await self._get(key, prototype, byte_range)
        if found is None:
            self.missed += 1
        return found

    async def _end(self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest) -> Buffer | None:
        """The end of an object, for all who ask for it at the same time or soon after."""
        task = self._ends.pop(key, None) or asyncio.ensure_future(self._get(key, prototype, byte_range))
        self._ends[key] = task
        if len(self._ends) > ENDS:
            del self._ends[next(iter(self._ends))]
        found = None
        try:
            found = await asyncio.shield(task)
        finally:
            if found is None and self._ends.get(key) is task:
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


def open_remote(address: Address) -> RemoteFiles:
    """What is below an address; no request is made yet.

    Raises
    ------
    VolumeError
        If obstore is not installed, or the environment says something that it does not take.
    """
    store = load_extra("obstore.store", "remote", address)
    try:
        if address.scheme in ("http", "https"):
            client = {"timeout": TIMEOUT, "allow_http": address.scheme == "http"}
            found = store.HTTPStore.from_url(str(address), client_options=client, retry_config=RETRIES)
        else:
            kind = store.S3Store if address.scheme == "s3" else store.GCSStore
            # as one of its own options: with `client_options` it would not look for others in the environment
            options = {"timeout": TIMEOUT, **({} if _says_who(address.scheme) else {"skip_signature": True})}
            found = kind(address.host, prefix=address.key or None, retry_config=RETRIES, **options)
        return RemoteFiles(found, read_only=True)
    except Exception as error:  # each kind of store has errors of its own for what it does not take
        raise VolumeError(f"{address} cannot be opened ({_first_line(error)}): check it, and the environment") from error


def _says_who(scheme: str) -> bool:
    """Whether the environment says with whose right to read."""
    return any(os.environ.get(name) for name in CREDENTIALS[scheme])


def _explained(error: Exception) -> StoreError:
    """An error of obstore in few words; its own fill a page."""
    import obstore  # noqa: PLC0415

    whole = str(error)
    if isinstance(error, obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError):
        remedy = "set credentials that may read it, such as AWS_ACCESS_KEY_ID or GOOGLE_APPLICATION_CREDENTIALS"
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
