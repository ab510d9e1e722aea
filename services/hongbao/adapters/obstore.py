"""Owns the object store on S3, through obstore; says where objects are: a folder or a bucket.

An object is one conditional PUT (If-None-Match: *), because a multipart upload could not promise to
create only: obstore completes those unconditionally. A file is sent from its memory map, so that
its size costs no memory; S3 takes 5 GiB in one PUT. With each upload goes a SHA-256 that the server
checks, and the same hash is kept as the object's metadata and checked by whoever reads it.
"""

import asyncio
import contextlib
import hashlib
import mmap
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError
from obstore.store import S3Store

from hongbao.adapters.folder_objects import FolderObjects
from hongbao.adapters.partial_file import partial_file
from hongbao.domain.errors import (
    Ambiguous,
    Corrupt,
    Exhausted,
    NotFound,
    Rejected,
    Transient,
)
from hongbao.domain.objects import ObjectStore

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

SHA256: Final = "sha256"
"""Metadata of an object; one that others put there without it is read unchecked."""
PROBE: Final = "create-only/probe"
PROVED: Final = "create-only/proved"
PUT_BYTES_MAX: Final = 5 << 30
"""S3's own limit on one PUT: 1.3 billion amounts, 200 million tickets a file."""
QUICK_BYTES_MAX: Final = 4 << 20
"""Up to here an upload is one quick request; a larger one gets PUT_S_MAX."""
CHUNK_BYTES: Final = 1 << 20
DEBUG_TAIL: Final = "\n\nDebug source:"
"""What obstore adds to its messages: a page of Rust structures."""

CONNECT_S_MAX: Final = 3.0
STALL_S_MAX: Final = 5.0
"""How long a server may say nothing, before and within an answer."""
FETCH_S_MAX: Final = 1800.0
PUT_S_MAX: Final = 900.0
"""The whole of a large upload: 5 GiB at 50 Mbit/s."""
RETRIES_MAX: Final = 5
RETRY_S_MAX: Final = 10.0
"""After this no retry is begun: callers wait and come again by themselves."""
BACKOFF_S: Final = 0.1
BACKOFF_S_MAX: Final = 2.0


def open_objects(where: str | Path, endpoint: str | None = None) -> ObjectStore:
    """Open `s3://bucket/prefix` or a folder as an object store; connects lazily.

    The standard AWS_* variables bring credentials and region, and the endpoint unless it is given;
    a folder is created when it is not there. Raises Rejected for another kind of URL.
    """
    url = str(where)
    if url.startswith("s3://"):
        return S3Objects(url, endpoint)
    if "://" in url:
        raise Rejected(f"objects lie in s3://bucket/prefix or a folder, not in {url}", field="url")
    return FolderObjects(Path(url))


class S3Objects:
    """Keeps immutable objects in a bucket; names are never overwritten."""

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self._url = url
        stall, whole = timedelta(seconds=STALL_S_MAX), timedelta(seconds=FETCH_S_MAX)
        self._quick = _open_store(url, endpoint, {"read_timeout": stall, "timeout": whole})
        # The stall limit of the client begins with the request, so a long upload would break it.
        self._bulk = _open_store(url, endpoint, {"timeout": timedelta(seconds=PUT_S_MAX)})

    async def get(self, name: str) -> bytes:
        """Return the whole object. Raises NotFound, Corrupt, Transient."""
        with self._translated(name):
            result = await obstore.get_async(self._quick, name)
            data = bytes(await result.bytes_async())
        self._check(name, result.attributes, hashlib.sha256(data).hexdigest())
        return data

    async def fetch(self, name: str, path: Path) -> None:
        """Stream the object into `path`, which appears whole or not at all."""
        with self._translated(name):
            result = await obstore.get_async(self._quick, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(path) as partial:
                with partial.open("wb") as file:
                    digest = await _write_stream(result, file)
                self._check(name, result.attributes, digest)
                os.replace(partial, path)

    async def put_new(self, name: str, data: bytes) -> None:
        """Create the object; the same bytes again are a no-op, others raise Rejected."""
        await self._create(name, data, hashlib.sha256(data).hexdigest())

    async def put_file_new(self, name: str, path: Path) -> None:
        """Create the object from a file; what is there already is not sent again."""
        with _mapped(path) as data:
            digest = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            if not await self._is_there(name, len(data), digest):
                await self._create(name, data, digest)

    async def prove_create_only(self) -> None:
        """Raise Rejected when the store ignores If-None-Match: it would overwrite, and say nothing.

        Tried once for each prefix, and kept there as proved; safe to repeat.
        """
        with self._translated(PROVED):
            try:
                await obstore.head_async(self._quick, PROVED)
            except FileNotFoundError:
                pass
            else:
                return
            with contextlib.suppress(AlreadyExistsError):  # an earlier try ended before its end
                await obstore.put_async(self._quick, PROBE, b"first", mode="create")
            try:
                await obstore.put_async(self._quick, PROBE, b"other", mode="create")
            except AlreadyExistsError:
                pass
            else:
                message = f"{self._url}: the store overwrites objects: it ignores If-None-Match"
                raise Rejected(message, field="objects_url")
        await self.put_new(PROVED, b"")

    async def names(self, prefix: str) -> list[str]:
        """Return the names below a prefix of whole segments, sorted."""
        with self._translated(prefix):
            stream = obstore.list(self._quick, prefix.strip("/"))
            return sorted([str(meta["path"]) async for batch in stream for meta in batch])

    async def _create(self, name: str, data: bytes | mmap.mmap, digest: str) -> None:
        """Put, and tell by reading back what became of it whenever the answer does not."""
        if len(data) > PUT_BYTES_MAX:
            message = f"object {name!r}: {len(data)} bytes, at most {PUT_BYTES_MAX} fit"
            raise Exhausted(message, field="name")
        store = self._quick if len(data) <= QUICK_BYTES_MAX else self._bulk
        attributes = {SHA256: digest}
        try:
            with self._translated(name):
                await obstore.put_async(store, name, data, mode="create", attributes=attributes)
        except (AlreadyExistsError, Transient) as error:
            try:
                told = await self._is_there(name, len(data), digest)
            except Transient as unread:
                raise Ambiguous(f"object {name!r} may or may not be there: {error}") from unread
            if not told:  # it may still be on its way
                raise Ambiguous(f"object {name!r} is not there yet: {error}") from error

    async def _is_there(self, name: str, size: int, digest: str) -> bool:
        """Say whether the object is there. Raises Rejected when it has other bytes."""
        try:
            with self._translated(name):
                found = await obstore.get_async(self._quick, name, options={"head": True})
                kept = found.attributes.get(SHA256)
                if kept is None and found.meta["size"] == size:
                    kept = await self._digest(name)
        except NotFound:
            return False
        if (found.meta["size"], kept) != (size, digest):
            raise Rejected(f"object {name!r} exists with other bytes", field="name")
        return True

    async def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        result = await obstore.get_async(self._quick, name)
        async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest()

    def _check(self, name: str, attributes: Mapping[str, str], digest: str) -> None:
        kept = attributes.get(SHA256, digest)
        if kept != digest:
            raise Corrupt(f"object {name!r} in {self._url}: sha256 is {digest}, {kept} was put")

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(
                f"object {name!r} does not exist in {self._url}", field="name"
            ) from error
        except InvalidPathError as error:
            raise Rejected(f"{name!r} is no object name", field="name") from error
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:  # refused credentials too: a person can mend them
            said = str(error).partition(DEBUG_TAIL)[0]
            raise Transient(f"object {name!r} in {self._url}: {said}") from error


def _open_store(url: str, endpoint: str | None, limits: "ClientConfig") -> S3Store:
    given: S3Config = {"endpoint": endpoint} if endpoint else {}
    retries: RetryConfig = {
        "max_retries": RETRIES_MAX,
        "retry_timeout": timedelta(seconds=RETRY_S_MAX),
        "backoff": {
            "init_backoff": timedelta(seconds=BACKOFF_S),
            "max_backoff": timedelta(seconds=BACKOFF_S_MAX),
            "base": 2,
        },
    }
    client: ClientConfig = {
        "allow_http": True,  # the endpoint's own scheme decides
        "connect_timeout": timedelta(seconds=CONNECT_S_MAX),
        **limits,
    }
    given["checksum_algorithm"] = "SHA256"
    try:
        return S3Store.from_url(url, config=given, client_options=client, retry_config=retries)
    except (BaseError, ValueError) as error:
        raise Rejected(f"{url} cannot be opened: {error}", field="objects_url") from error


async def _write_stream(result: Any, file: BinaryIO) -> str:
    """Write a whole answer; return its SHA-256. Raises Transient when it ends early."""
    digest = hashlib.sha256()
    chunks: AsyncIterator[bytes] = result.stream(min_chunk_size=CHUNK_BYTES)
    async for chunk in chunks:
        digest.update(chunk)
        await asyncio.to_thread(file.write, chunk)
    if file.tell() != result.meta["size"]:
        raise Transient(f"{file.tell()} of {result.meta['size']} bytes came")
    return digest.hexdigest()


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """Map a file; one that is empty has nothing to map."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
