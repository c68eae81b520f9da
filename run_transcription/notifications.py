"""A bucket's notifications: ours, to the stack's live queue, are added and taken away; those of others never change."""

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
        "Id": f"transcribe-{stack.name}",
        "QueueArn": stack.live_arn,
        "Events": EVENTS,
        **({"Filter": {"Key": {"FilterRules": rules}}} if rules else {}),
    }
    _replace(bucket, stack, [ours])


def detach(bucket: str, stack: Stack) -> None:
    """Take our notification away from a bucket; raises TranscriptionError."""
    _replace(bucket, stack, [])


def is_attached(bucket: str, stack: Stack) -> bool:
    """Tell whether a bucket announces anything to the stack's live queue; raises TranscriptionError."""
    with aws.plainly(f"read the notifications of {bucket}"):
        found = aws.s3().get_bucket_notification_configuration(Bucket=bucket).get("QueueConfigurations", ())
    return any(each["QueueArn"] == stack.live_arn for each in found)


def _replace(bucket: str, stack: Stack, ours: list[Any]) -> None:
    """Write all notifications of a bucket, since S3 knows no single ones: those of others as they were read."""
    with aws.plainly(f"change the notifications of {bucket}"):
        found: Any = dict(aws.s3().get_bucket_notification_configuration(Bucket=bucket))
        found.pop("ResponseMetadata", None)
        before = found.get("QueueConfigurations", [])
        others = [each for each in before if _queue_of(each["QueueArn"]) != _queue_of(stack.live_arn)]
        if [*others, *ours] != before:
            found["QueueConfigurations"] = [*others, *ours]
            aws.s3().put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=found)


def _queue_of(arn: str) -> str:
    """Return what the live queues of all stacks of one name have in common: CloudFormation adds letters of chance."""
    return arn.rpartition("-")[0]
