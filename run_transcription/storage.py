"""Where recordings lie and results go: a path, or an address such as s3://bucket/key."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import aws
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.records import StoredFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCHEME = "s3://"
IMAGE_HOME = Path("/opt/transcribe")
CONFLICT_PAUSES = (0.1, 0.5, 2.0)  # seconds between tries while another writer holds the same key

KINDS = {  # by what browsers go: a page of another type is saved and not shown
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".srt": "application/x-subrip",
    ".tsv": "text/tab-separated-values; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".vtt": "text/vtt; charset=utf-8",
}

FORBIDDEN, CONFLICT, PRECONDITION_FAILED = 403, 409, 412

log = logging.getLogger(__name__)


def is_s3(address: str) -> bool:
    """Tell whether an address is on S3."""
    return address.startswith(SCHEME)


def join(address: str, *names: str) -> str:
    """Return the address of something below another one; names are taken as they are."""
    return "/".join((address.rstrip("/"), *names))


def split(address: str) -> tuple[str, str]:
    """Return bucket and key of an S3 address; the key is everything after the bucket, never decoded."""
    bucket, _, key = address.removeprefix(SCHEME).partition("/")
    if not bucket:
        message = f"{address!r} names no bucket: write s3://bucket/key"
        raise TranscriptionError(message)
    return bucket, key


def split_object(address: str) -> tuple[str, str]:
    """Return bucket and key of the S3 address of one object; raises TranscriptionError where it names no key."""
    bucket, key = split(address)
    if not key:
        raise TranscriptionError(f"{address} names a bucket and nothing in it: write {SCHEME}{bucket}/key")
    return bucket, key


def home() -> Path:
    """Return the folder of models, GPU state and caches: TRANSCRIBE_HOME, the image's, or the user's cache folder."""
    if chosen := os.environ.get("TRANSCRIBE_HOME"):
        return Path(chosen)
    if IMAGE_HOME.is_dir():
        return IMAGE_HOME
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "transcribe"


def store(address: str, data: bytes, *, if_absent: bool = False) -> StoredFile:
    """Write a file in one step: readers see all of it or nothing; missing folders are made.

    With `if_absent` a file that is there already stays as it is, and is what is returned: somebody has done the same
    work, or our own first try succeeded and its answer was lost.
    """
    put = _put_object if is_s3(address) else _put_file
    with aws.plainly(f"write {address}"):
        if not put(address, data, if_absent=if_absent):
            log.info("%s was there already and is kept", address)
            data = _content(address)
    return StoredFile(address, hashlib.sha256(data).hexdigest(), len(data))


def require_writable(address: str) -> None:
    """Make a folder and try it, so that nobody waits for a result that can't be kept; of S3 the bucket must be there.

    Raises TranscriptionError.
    """
    with aws.plainly(f"write into {address}"):
        if is_s3(address):
            _require_bucket(split(address)[0])
            return
        Path(address).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=address):
            pass


def exists(address: str) -> bool:
    """Tell whether there is a file or an object at an address."""
    return version(address) is not None


@dataclass(frozen=True, slots=True)
class Stored:
    """One content of an address: by its version id, or by its eTag in a bucket without versions; else what is there."""

    address: str
    version_id: str | None = None
    etag: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()  # that its uploader has given it


def version(address: str) -> str | None:
    """Return what tells two contents of one address apart, or None where nothing is.

    On S3 the version id, or the eTag in a bucket without versions; elsewhere size and modification time.
    """
    if not is_s3(address):
        return _file_version(address)
    found = look(address)
    return None if found is None else found.version_id or found.etag


def look(address: str, version_id: str | None = None) -> Stored | None:
    """Return which content lies at an S3 address now, None where there is none, or not in that version."""
    bucket, key = split_object(address)
    wanted = {"VersionId": version_id} if version_id else {}
    try:
        with aws.plainly(f"look for {address}", reading=True):
            head = aws.s3().head_object(Bucket=bucket, Key=key, **wanted)  # type: ignore[arg-type]
    except Rejected:
        return None
    found = head.get("VersionId", "null")
    metadata = tuple(sorted(head.get("Metadata", {}).items()))
    return Stored(address, None if found == "null" else found, head["ETag"].strip('"'), metadata)


def read(address: str) -> bytes:
    """Return the content of a small file."""
    with aws.plainly(f"read {address}", reading=True):
        return _content(address)


def upload(
    path: Path,
    address: str,
    progress: Callable[[int], None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Copy a local file to S3, in parts where it is large; `progress` gets the bytes of each step."""
    bucket, key = split(address)
    with aws.plainly(f"upload {path} to {address}"):
        aws.s3().upload_file(str(path), bucket, key, Callback=progress, ExtraArgs={"Metadata": dict(metadata or {})})


def remove(address: str) -> None:
    """Remove a file or an object; one that is not there is no error."""
    with aws.plainly(f"remove {address}"):
        if is_s3(address):
            bucket, key = split_object(address)
            aws.s3().delete_object(Bucket=bucket, Key=key)
        else:
            Path(address).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Object:
    """An object of a listing, and when it was written, in UTC."""

    address: str
    written: str


def listing(address: str) -> Iterator[str]:
    """Yield the addresses of all objects whose key begins with the one given; folder markers are left out."""
    yield from (found.address for found in objects(address))


def objects(address: str) -> Iterator[Object]:
    """Yield all objects whose key begins with the one given, but folder markers."""
    bucket, prefix = split(address)
    with aws.plainly(f"list {address}"):
        for page in aws.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    written = found["LastModified"].strftime("%Y-%m-%dT%H:%M:%SZ")
                    yield Object(f"{SCHEME}{bucket}/{found['Key']}", written)


def listing_after(address: str, key: str) -> Iterator[str]:
    """Yield what `listing` does, but only what comes after a key."""
    bucket, prefix = split(address)
    with aws.plainly(f"list {address}"):
        pages = aws.s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, StartAfter=key)
        for page in pages:
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield f"{SCHEME}{bucket}/{found['Key']}"


def require_bucket(bucket: str) -> None:
    """Make sure that a bucket is there; raises TranscriptionError."""
    with aws.plainly(f"find the bucket {bucket}"):
        _require_bucket(bucket)


def remove_bucket(bucket: str) -> int:
    """Delete a bucket with every version of everything in it; return how many there were."""
    removed = 0
    with aws.plainly(f"remove the bucket {bucket}"):
        for page in aws.s3().get_paginator("list_object_versions").paginate(Bucket=bucket):
            found = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            doomed = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in found]
            if doomed:
                answer = aws.s3().delete_objects(Bucket=bucket, Delete={"Objects": doomed, "Quiet": True})  # type: ignore[typeddict-item]
                if errors := answer.get("Errors"):
                    raise TranscriptionError(f"cannot remove {errors[0].get('Key')}: {errors[0].get('Message')}")
                removed += len(doomed)
        aws.s3().delete_bucket(Bucket=bucket)
    return removed


def _content(address: str) -> bytes:
    if not is_s3(address):
        return Path(address).read_bytes()
    bucket, key = split(address)
    return aws.s3().get_object(Bucket=bucket, Key=key)["Body"].read()


def _require_bucket(bucket: str) -> None:
    from botocore.exceptions import ClientError

    try:
        aws.s3().head_bucket(Bucket=bucket)
    except ClientError as error:
        if aws.status_of(error) != FORBIDDEN:  # who may write need not be allowed to look
            raise


def _put_file(address: str, data: bytes, *, if_absent: bool) -> bool:
    """Return False where a file was already there and had to stay."""
    path = Path(address)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".transcribe-{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        if if_absent:
            os.link(part, path)  # unlike a rename, this fails where something is there already
        else:
            part.replace(path)
    except FileExistsError:
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _put_object(address: str, data: bytes, *, if_absent: bool) -> bool:
    """Return False where an object was already there and had to stay; a conflict means: try again."""
    from botocore.exceptions import ClientError

    bucket, key = split(address)
    kind = KINDS.get(Path(key).suffix, "application/octet-stream")
    for pause in (*CONFLICT_PAUSES, None):
        try:
            if if_absent:
                aws.s3().put_object(Bucket=bucket, Key=key, Body=data, ContentType=kind, IfNoneMatch="*")
            else:
                aws.s3().put_object(Bucket=bucket, Key=key, Body=data, ContentType=kind)
        except ClientError as error:
            if if_absent and aws.status_of(error) == PRECONDITION_FAILED:
                return False
            if aws.status_of(error) != CONFLICT or pause is None:
                raise
            time.sleep(pause)
        else:
            break
    return True


def _file_version(address: str) -> str | None:
    with aws.plainly(f"look for {address}"):
        try:
            facts = Path(address).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
    return f"{facts.st_size}-{facts.st_mtime_ns}"
