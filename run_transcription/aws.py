"""What all calls to AWS share: clients made once, with time limits, and failures said in one line."""

from __future__ import annotations

import difflib
import functools
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from run_transcription.errors import Gone, Rejected, TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

ABSENT = frozenset({"404", "NoSuchKey", "NoSuchVersion", "NoSuchBucket"})
REPLACED = frozenset({"412", "PreconditionFailed"})
IN_OUR_WORDS = {
    "NoSuchBucket": "there is no such bucket",
    "404": "there is no such object or bucket",
    "403": "this account may not do that (a key that is not there is forbidden too without s3:ListBucket)",
    "AccessDenied": "this account may not do that",
    "AWS.SimpleQueueService.NonExistentQueue": "there is no such queue",
    "QueueDoesNotExist": "there is no such queue",
    "InvalidAddress": "there is no such queue",
    "InvalidAccessKeyId": "the credentials are unknown",
    "SignatureDoesNotMatch": "the credentials are wrong",
    "ExpiredToken": "the credentials have expired",
    "NoCredentialsError": "there are no credentials: run aws configure, or set AWS_PROFILE",
    "ProfileNotFound": "there is no such profile: see AWS_PROFILE and ~/.aws/config",
}


_making = threading.Lock()  # threads may share a client, but not the session that makes it


def s3() -> S3Client:
    """Return this process's S3 client; threads may share it."""
    client: S3Client = _client("s3", None)
    return client


def sqs(region: str | None = None) -> SQSClient:
    """Return this process's SQS client for a region; threads may share it."""
    client: SQSClient = _client("sqs", region)
    return client


def client(service: str, region: str | None = None) -> Any:
    """Return this process's client of another service; threads may share it."""
    return _client(service, region)


def forget_clients() -> None:
    """Make clients anew from here on: each keeps the endpoint and the credentials that it was made with."""
    _client.cache_clear()
    session.cache_clear()


@functools.cache
def session() -> Any:
    """Return this process's session, which reads what boto3 knows of regions and services once for all clients."""
    import boto3

    return boto3.Session()


def require_region(wanted: str | None) -> str:
    """Return the region to work in; raises TranscriptionError where there is none, or none of that name."""
    region = find_region(wanted)
    if region is None:
        raise TranscriptionError("no region is given or configured: add --region, or set AWS_DEFAULT_REGION")
    return region


def find_region(wanted: str | None) -> str | None:
    """Return the region given, or that of the AWS configuration, if any; raises TranscriptionError for a wrong one."""
    with plainly("find the region"):
        region: str | None = wanted or session().region_name
    if region is not None and region not in _regions():  # calls to it would be tried for many seconds
        near = difflib.get_close_matches(region, _regions(), 1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise TranscriptionError(f"--region {region}: AWS has no region of that name{hint}")
    return region


@functools.cache
def _regions() -> tuple[str, ...]:
    """Return the names of all regions, as botocore brings them along."""
    places = (session().get_available_regions("ec2", each) for each in session().get_available_partitions())
    return tuple(name for names in places for name in names)


@contextmanager
def plainly(deed: str, *, reading: bool = False) -> Iterator[None]:
    """Say in one line what AWS, the network or the file system refused.

    Raises TranscriptionError; when reading a recording that is not there, Rejected("not_found"), and Gone where
    another content than the one asked for lies in its place.
    """
    try:
        yield
    except (GeneratorExit, TranscriptionError):  # no failure of theirs; and at the very end nothing can be imported
        raise
    except UnicodeEncodeError as error:
        raise TranscriptionError(f"cannot {deed}: the name is no UTF-8, which S3's are") from error
    except OSError as error:
        message = f"cannot {deed}: {error.strerror or error}"
        if reading and isinstance(error, FileNotFoundError):
            raise Rejected("not_found", message) from error
        raise TranscriptionError(message) from error
    except _errors() as error:
        message = f"cannot {deed}: {_in_our_words(error)}"
        if reading and _code(error) in REPLACED:
            raise Gone(message) from error
        if reading and _code(error) in ABSENT:
            raise Rejected("not_found", message) from error
        raise TranscriptionError(message) from error


def status_of(error: Exception) -> int:
    """Return the HTTP status that a botocore ClientError carries, 0 for an error without one."""
    metadata = (getattr(error, "response", None) or {}).get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0))


def _in_our_words(error: Exception) -> str:
    """Put what is wrong before AWS's own words, where we know it; some of botocore's complaints have several lines."""
    ours = IN_OUR_WORDS.get(_code(error) or type(error).__name__)
    theirs = " ".join(str(error).split())
    return f"{ours} ({theirs})" if ours else theirs


def _code(error: Exception) -> str:
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def _errors() -> tuple[type[Exception], ...]:
    """Import botocore only once something was raised: local files never wait for it."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    return (Boto3Error, BotoCoreError, ClientError, ResponseParserError)


@functools.cache
def _client(service: str, region: str | None) -> Any:
    """Make a client that notices a dead connection within seconds, and tries again when throttled or after a 5xx.

    boto3 honours AWS_ENDPOINT_URL by itself.
    """
    from botocore.config import Config

    config = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 5},
        max_pool_connections=20,
    )
    with plainly(f"reach {service.upper()}"), _making:
        try:
            return session().client(service, region_name=region, config=config)
        except ValueError as error:  # botocore says so of an endpoint that is no URL
            raise TranscriptionError(f"cannot reach {service.upper()}: {error}") from error
