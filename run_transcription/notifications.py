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


def detach(bucket: str, stack: Stack) -> bool:
    """Take our notification away from a bucket, and tell whether there was one; raises TranscriptionError."""
    return _replace(bucket, stack, [])


def prefix_of(bucket: str, stack: Stack) -> str | None:
    """Return the prefix of what a bucket announces to the stack's live queue, None where it announces nothing.

    Raises TranscriptionError.
    """
    with aws.plainly(f"read the notifications of {bucket}"):
        found: Any = aws.s3().get_bucket_notification_configuration(Bucket=bucket).get("QueueConfigurations", ())
    for each in found:
        if each["QueueArn"] == stack.live_arn:
            rules = each.get("Filter", {}).get("Key", {}).get("FilterRules", ())
            return next((str(rule["Value"]) for rule in rules if rule["Name"].lower() == "prefix"), "")
    return None


def _replace(bucket: str, stack: Stack, ours: list[Any]) -> bool:
    """Write all notifications of a bucket, since S3 knows no single ones: those of others as they were read.

    Returns whether that changed anything.
    """
    with aws.plainly(f"change the notifications of {bucket}"):
        found: Any = dict(aws.s3().get_bucket_notification_configuration(Bucket=bucket))
        found.pop("ResponseMetadata", None)
        before = found.get("QueueConfigurations", [])
        others = [each for each in before if _queue_of(each["QueueArn"]) != _queue_of(stack.live_arn)]
        if [*others, *ours] == before:
            return False
        found["QueueConfigurations"] = [*others, *ours]
        aws.s3().put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=found)
        return True


def _queue_of(arn: str) -> str:
    """Return what the live queues of all stacks of one name have in common: CloudFormation adds letters of chance."""
    return arn.rpartition("-")[0]
