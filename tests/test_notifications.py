from __future__ import annotations

import pytest

from run_transcription import aws, notifications, stacks, storage

REGION, ACCOUNT = "us-east-1", "000000000000"


def queue(name):
    """Make a queue, and return its ARN."""
    aws.sqs().create_queue(QueueName=name)
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"


@pytest.fixture
def stack(emulator):
    """Describe a stack whose live queue is one of its second life."""
    live = queue("twice-LiveQueue-NEW2")
    return stacks.Stack("twice", REGION, "id", "CREATE_COMPLETE", "", "", live, "", "", "", None, "", ())


@pytest.fixture
def bucket(emulator):
    """Make a bucket that announces to a queue of the stack's first life, to somebody else's, and to EventBridge."""
    aws.s3().create_bucket(Bucket="left")
    rows = [
        {"Id": name, "QueueArn": queue(name), "Events": ["s3:ObjectCreated:*"], "Filter": below(prefix)}
        for name, prefix in (("twice-LiveQueue-OLD1", "uploads/"), ("theirs-LiveQueue-X", "other/"))
    ]
    configuration = {"QueueConfigurations": rows, "EventBridgeConfiguration": {}}
    aws.s3().put_bucket_notification_configuration(Bucket="left", NotificationConfiguration=configuration)
    yield "left"
    storage.remove_bucket("left")


def below(prefix):
    """Return S3's filter of keys."""
    return {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}


def told(bucket):
    """Return which queue hears of which prefix, and whether EventBridge does."""
    found = aws.s3().get_bucket_notification_configuration(Bucket=bucket)
    rows = found.get("QueueConfigurations", ())
    heard = {each["QueueArn"].rpartition(":")[2]: each["Filter"]["Key"]["FilterRules"][0]["Value"] for each in rows}
    return heard, "EventBridgeConfiguration" in found


def test_a_queue_of_the_stacks_first_life_gives_way(stack, bucket):
    """S3 would refuse two of one prefix, and one that goes nowhere; what is others' stays."""
    assert notifications.prefix_of(bucket, stack) is None
    notifications.attach(bucket, "uploads/", stack)
    assert notifications.prefix_of(bucket, stack) == "uploads/"
    assert told(bucket) == ({"theirs-LiveQueue-X": "other/", "twice-LiveQueue-NEW2": "uploads/"}, True)


def test_another_prefix_takes_the_place_of_the_first(stack, bucket):
    """A bucket is attached with one prefix; given again it is that one from then on."""
    notifications.attach(bucket, "uploads/", stack)
    notifications.attach(bucket, "calls/", stack)
    assert told(bucket)[0]["twice-LiveQueue-NEW2"] == "calls/"
    assert notifications.detach(bucket, stack)
    assert told(bucket) == ({"theirs-LiveQueue-X": "other/"}, True)
    assert not notifications.detach(bucket, stack)
    notifications.attach(bucket, "", stack)
    assert notifications.prefix_of(bucket, stack) == ""
