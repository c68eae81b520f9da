from __future__ import annotations

import pytest
from click.testing import CliRunner
from test_submit import BAD, FIRST, SECOND, finish

from run_transcription import aws, results, stacks, storage
from run_transcription.find_results import find_results
from run_transcription.results import Found, newest

KEY = "uploads/a talk+é.wav"


@pytest.fixture
def root(stack):
    """Name the bucket."""
    return f"s3://{stack.bucket}"


def run(stack, *arguments):
    """Call the command."""
    return CliRunner().invoke(find_results, [KEY, "--bucket", stack.bucket, *arguments])


def test_the_newest_versions_result_is_shown(stack, root):
    """Of three uploads of one key the last one counts, whichever was finished last; --all shows every one."""
    versions = []
    for number in range(3):
        storage.store(f"{root}/{KEY}", b"%d" % number)
        versions.append(storage.version(f"{root}/{KEY}"))
    newer = finish(root, KEY, SECOND, version=versions[2])
    older = finish(root, KEY, FIRST, version=versions[0])
    failed = finish(root, KEY, "2" * 16, BAD, version=versions[1])
    shown = run(stack).output
    assert newer in shown
    assert shown.count("\n") == 1
    said = run(stack, "--all").output
    assert all(address in said for address in (newer, older, failed))
    assert f"{failed} {BAD.code}: {BAD.message}\n" in said


def test_a_version_without_a_result_is_said(stack, root):
    """The result of an older upload is not taken for the newest one's."""
    storage.store(f"{root}/{KEY}", b"older")
    finish(root, KEY)
    storage.store(f"{root}/{KEY}", b"newer")
    done = run(stack)
    assert done.exit_code == 1
    assert "has no result yet" in done.output
    assert run(stack, "--all").exit_code == 0


def test_a_failure_is_shown_with_its_reason(stack, root):
    """Who asks what became of a recording wants to know why; its address names bucket and key."""
    storage.store(f"{root}/{KEY}", b"noise")
    finish(root, KEY, FIRST, BAD)
    done = CliRunner().invoke(find_results, [f"{root}/{KEY}"])
    assert done.exit_code == 0
    assert done.output.startswith("FAILED ")
    assert done.output.endswith("not_audio: it holds no sound\n")


def test_a_mistyped_key_is_told_from_a_recording_that_waits(stack):
    """Nothing will ever come of it."""
    done = CliRunner().invoke(find_results, ["talk.wav", "--bucket", stack.bucket])
    assert done.exit_code == 1
    assert f"there is no s3://{stack.bucket}/talk.wav, and no result of it" in done.output


def test_results_outlive_their_recording(stack, root):
    """Of a recording that was removed the last upload's result is shown: by S3's sequence, not by time."""
    storage.store(f"{root}/{KEY}", b"sound")
    address = finish(root, KEY)
    aws.s3().delete_object(Bucket=stack.bucket, Key=KEY)
    assert address in run(stack).output


def test_an_attached_buckets_results_are_found_in_the_stacks_own(stack, root, monkeypatch):
    """Nobody needs to say where; the stack's own recording of the same key has a result of its own."""
    described = ("s", "us-east-1", "", "", stack.bucket, "", "", "", "", "", None, "", ("talks",))
    monkeypatch.setattr(stacks, "find", lambda *_: stacks.Stack(*described))
    aws.s3().create_bucket(Bucket="talks")
    for bucket in ("talks", stack.bucket):
        storage.store(f"s3://{bucket}/{KEY}", b"sound")
    own = finish(root, KEY)
    theirs = finish("s3://talks", KEY, SECOND)
    moved = theirs.replace("s3://talks", root)
    storage.store(moved, storage.read(theirs))
    storage.remove(theirs)
    for named in ([f"s3://talks/{KEY}"], [KEY, "--bucket", "talks"]):
        done = CliRunner().invoke(find_results, [*named, "--all"])
        assert [line.split(" ", 3)[3] for line in done.stdout.splitlines()] == [moved]
    assert [line.split(" ", 3)[3] for line in run(stack, "--all").stdout.splitlines()] == [own]
    storage.remove_bucket("talks")


def test_sequencers_are_compared_as_s3_says():
    """As text, the shorter one filled up with zeros on its right."""
    found = [Found("a", "2026", "COMPLETED", number, number, None) for number in ("0A1", "0A", "0B", "0A01")]
    assert [one.sequencer for one in sorted(found, key=results._age)] == ["0A", "0A01", "0A1", "0B"]
    assert newest(sorted(found, key=results._age), None)[0].version == "0B"
