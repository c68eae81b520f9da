from __future__ import annotations

import pytest
from click.testing import CliRunner

from run_transcription import aws, changes, fleet, notifications, stacks, storage
from run_transcription.attach_bucket import attach_bucket
from run_transcription.changes import ChangeSet, Row

REGION = "us-east-1"


@pytest.fixture
def stack(emulator, monkeypatch):
    """Describe a stack with a fleet, which no emulator deploys: the change that CloudFormation makes is left out."""
    aws.sqs().create_queue(QueueName="fleet-LiveQueue-1")
    live = f"arn:aws:sqs:{REGION}:000000000000:fleet-LiveQueue-1"
    found = stacks.Stack("fleet", REGION, "id", "CREATE_COMPLETE", "own", "", live, "", "", "", "group", "", ())
    row = Row("Modify", "LaunchTemplate", "AWS::EC2::LaunchTemplate", replaced=False)
    monkeypatch.setattr(stacks, "find", lambda *_: found)
    monkeypatch.setattr(changes, "prepare", lambda *_: ChangeSet("fleet", REGION, "c", "s", creates=False, rows=(row,)))
    monkeypatch.setattr(changes, "carry_out", lambda *_: None)
    return found


@pytest.fixture
def bucket(emulator):
    """Make a bucket of somebody's."""
    aws.s3().create_bucket(Bucket="somebodys")
    yield "somebodys"
    storage.remove_bucket("somebodys")


def test_no_event_reaches_an_instance_that_does_not_know_the_bucket(stack, bucket, monkeypatch):
    """Instances that run would take its messages for poison: they are replaced before the bucket announces any."""
    attached_by_then = []

    def renew(*_):
        attached_by_then.append(notifications.is_attached(bucket, stack))
        return 2

    monkeypatch.setattr(fleet, "renew", renew)
    done = CliRunner().invoke(attach_bucket, [bucket, "--region", REGION])
    assert done.exit_code == 0, done.output
    assert attached_by_then == [False]
    assert notifications.is_attached(bucket, stack)
    assert "2 instances are replaced by some that know somebodys" in done.stderr
    gone = CliRunner().invoke(attach_bucket, [bucket, "--detach", "--region", REGION])
    assert gone.exit_code == 0, gone.output
    assert attached_by_then == [False]  # whoever knows one bucket too many harms nobody
    assert not notifications.is_attached(bucket, stack)
