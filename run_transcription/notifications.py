"""A bucket's notifications: ours are added and taken away, those of others are never touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from run_transcription import aws

if TYPE_CHECKING:
    from run_transcription.stacks import Stack

EVENTS = ["s3:ObjectCreated:*"]


def attach(bucket: str, prefix: str, stack: Stack) -> None:
    """Let a bucket announce its uploads below a prefix to the stack's live queue; raises TranscriptionError."""
    rules = [{"Name": "prefix", "Value": prefix}] if prefix else []
    ours = {
        "Id": _id(stack),
        "QueueArn": stack.live_arn,
        "Events": EVENTS,
        **({"Filter": {"Key": {"FilterRules": rules}}} if rules else {}),
    }
    _replace(bucket, stack, [ours])


def detach(bucket: str, stack: Stack) -> None:
    """Take our notification away from a bucket; raises TranscriptionError."""
    _replace(bucket, stack, [])


def _replace(bucket: str, stack: Stack, ours: list[Any]) -> None:
    """Write all notifications of a bucket, since S3 knows no single ones: those of others as they were read."""
    with aws.plainly(f"change the notifications of {bucket}"):
        found: Any = dict(aws.s3().get_bucket_notification_configuration(Bucket=bucket))
        found.pop("ResponseMetadata", None)
        others = [each for each in found.get("QueueConfigurations", ()) if each.get("Id") != _id(stack)]
        if ours or len(others) != len(found.get("QueueConfigurations", ())):
            found["QueueConfigurations"] = others + ours
            aws.s3().put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=found)


def _id(stack: Stack) -> str:
    return f"transcribe-{stack.name}"
