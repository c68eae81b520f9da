from __future__ import annotations

from dataclasses import replace

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


def run(*arguments):
    """Call the command."""
    return CliRunner().invoke(attach_bucket, [*arguments, "--region", REGION])


def test_no_event_reaches_an_instance_that_does_not_know_the_bucket(stack, bucket, monkeypatch):
    """Instances that run would take its messages for poison: they are replaced before the bucket announces any."""
    attached_by_then = []

    def renew(*_):
        attached_by_then.append(notifications.prefix_of(bucket, stack))
        return 2

    monkeypatch.setattr(fleet, "renew", renew)
    done = run(bucket)
    assert done.exit_code == 0, done.output
    assert attached_by_then == [None]
    assert notifications.prefix_of(bucket, stack) == "uploads/"
    assert "2 instances are replaced by some that know somebodys" in done.stderr
    gone = run(bucket, "--detach")
    assert gone.exit_code == 0, gone.output
    assert attached_by_then == [None]  # whoever knows one bucket too many harms nobody
    assert notifications.prefix_of(bucket, stack) is None


def test_another_prefix_says_which_one_it_replaces(stack, bucket, monkeypatch):
    """A bucket has one prefix: what is transcribed no longer is said, and the same one again says nothing of it."""
    monkeypatch.setattr(fleet, "renew", lambda *_: 0)
    run(bucket, "--prefix", "calls/")
    assert run(bucket, "--prefix", "new/").stdout.endswith("into own; somebodys/calls/ no longer is\n")
    assert run(bucket, "--prefix", "new/").stdout.endswith("into own\n")


def test_a_bucket_that_was_never_attached_is_not_detached(stack, bucket):
    """A mistyped name is no success; those that are attached are named."""
    done = run(bucket, "--detach")
    assert done.exit_code == 1
    assert done.stderr == "Error: somebodys is not attached to fleet (attached: none)\n"


def test_a_bucket_that_is_gone_can_be_detached(stack, monkeypatch):
    """The stack forgets it; there is nothing left that could announce."""
    monkeypatch.setattr(stacks, "find", lambda *_: replace(stack, attached=("gone",)))
    done = run("gone", "--detach")
    assert done.exit_code == 0, done.output
    assert "passed over: cannot find the bucket gone: there is no such" in done.stderr
    assert done.stdout == "gone is no longer transcribed by fleet\n"


@pytest.mark.parametrize("arguments", [["somebodys", "--prefix", "/calls"], ["s3://somebodys/calls/"]])
def test_what_names_no_keys_is_refused(stack, bucket, arguments):
    """A slash before the prefix would match nothing, and a prefix is no part of the bucket's name."""
    done = run(*arguments)
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert notifications.prefix_of(bucket, stack) is None
