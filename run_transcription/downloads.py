"""Recordings on S3 → private copies on this machine's disk."""

from __future__ import annotations

import errno
import logging
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import aws, storage
from run_transcription.errors import OutOfOrder, Rejected
from run_transcription.storage import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PART = 1 << 20  # bytes read at once
PAUSES = (0.1, 0.5, 2.0)  # seconds between tries to go on with a download
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})

log = logging.getLogger(__name__)


@contextmanager
def local_copy(address: str, version_id: str | None = None) -> Iterator[Path]:
    """Lend a recording as a local path: the path itself, or a private temporary file that is removed afterwards.

    Raises Rejected("not_found") for an object that is not there, TranscriptionError when S3 can't be read now.
    """
    if not storage.is_s3(address):
        yield Path(address)
        return
    with tempfile.TemporaryDirectory(prefix="transcribe-") as folder:
        yield fetch(Stored(address, version_id), Path(folder))


def fetch(wanted: Stored, folder: Path, beat: Callable[[], None] = lambda: None) -> Path:
    """Copy an object into a private folder and return the path; `beat` is called after each part.

    A download that breaks off goes on where it was. Raises Rejected: "not_found" where there is no such object,
    "too_large" where it is larger than the whole disk; Gone where another content has taken the place of the one
    wanted; OutOfOrder where the disk is full; TranscriptionError when S3 can't be read now.
    """
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    bucket, key = storage.split_object(wanted.address)
    with _full_disk_told(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / ("recording" + _plain_suffix(key))
    condition = {"VersionId": wanted.version_id} if wanted.version_id else _if_match(wanted.etag)
    with aws.plainly(f"read {wanted.address}", reading=True), _full_disk_told(folder), path.open("wb") as file:
        for pause in (*PAUSES, None):
            rest = {"Range": f"bytes={file.tell()}-"} if file.tell() else {}
            try:
                answer = aws.s3().get_object(Bucket=bucket, Key=key, **condition, **rest)  # type: ignore[arg-type]
                condition = condition or _if_match(answer["ETag"].strip('"'))
                _check_room(wanted.address, answer["ContentLength"], folder)
                if rest and "ContentRange" not in answer:  # all of it again: not every S3 gives the rest of a version
                    file.seek(0)
                    file.truncate()
                for part in answer["Body"].iter_chunks(PART):
                    file.write(part)
                    beat()
            except (HTTPClientError, IncompleteReadError) as error:
                if pause is None:
                    raise
                log.info("reading %s broke off after %d bytes (%s): going on", wanted.address, file.tell(), error)
                time.sleep(pause)
            else:
                break
    return path


def _if_match(etag: str | None) -> dict[str, str]:
    return {"IfMatch": f'"{etag}"'} if etag else {}


def _check_room(address: str, size: int, folder: Path) -> None:
    """Refuse what does not fit on an empty disk: that is no fault of the machine's, and would fill every worker's."""
    total = shutil.disk_usage(folder).total
    if size > total:
        raise Rejected("too_large", f"{address} has {size} bytes, and the whole disk {total}: split it")


@contextmanager
def _full_disk_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OutOfOrder(f"cannot write into {folder}: {error.strerror}") from error
        raise


def _plain_suffix(key: str) -> str:
    """Keep what helps to guess a container, and nothing that a key could smuggle into a path."""
    found = re.search(r"\.[A-Za-z0-9]{1,8}\Z", key)
    return found.group() if found else ""
