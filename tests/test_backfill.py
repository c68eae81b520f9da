from __future__ import annotations

import json
import os
import signal
import sys
import threading
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from run_transcription import aws, backfill, backlog, fleet_report, names, options, stacks, storage
from run_transcription.backfill import Progress, Run
from run_transcription.errors import TranscriptionError

ID = "0" * 16
REGION = "us-east-1"


@pytest.fixture
def deployed(stack):
    """Describe the test's bucket and queue as a stack's; its live queue serves as the backfill queue."""
    aws.sqs().purge_queue(QueueUrl=stack.queue_url)
    return stacks.Stack(
        "s", REGION, "id", "CREATE_COMPLETE", stack.bucket, "", "", stack.queue_url, "", "", None, "", ("calls-b",)
    )


@pytest.fixture
def calls(emulator):
    """Make an attached bucket."""
    aws.s3().create_bucket(Bucket="calls-b")
    yield "s3://calls-b/"
    storage.remove_bucket("calls-b")


def put(*addresses):
    for address in addresses:
        bucket, key = storage.split(address)
        aws.s3().put_object(Bucket=bucket, Key=key, Body=b"x")


def finish(stack, key, *, failed=False):
    """Write what a worker would."""
    output = f"s3://{stack.bucket}"
    folder = names.failed_of(output, key) if failed else names.results_of(output, key)
    put(f"{folder}{ID}.json" if failed else f"{folder}{ID}/transcript.json")


def left(source, stack):
    pages = backlog.listed(source, "")
    return [address for page in pages for address in backlog.without_result(page, f"s3://{stack.bucket}")]


def received(stack):
    """Empty the queue, and count the keys in it."""
    found: Counter = Counter()
    while (
        messages := aws.sqs()
        .receive_message(QueueUrl=stack.backfill_url, MaxNumberOfMessages=10, WaitTimeSeconds=0)
        .get("Messages")
    ):
        found.update(json.loads(each["Body"])["key"] for each in messages)
        entries = [{"Id": each["MessageId"], "ReceiptHandle": each["ReceiptHandle"]} for each in messages]
        aws.sqs().delete_message_batch(QueueUrl=stack.backfill_url, Entries=entries)
    return found


KEYS = [
    "a.wav",
    "a.wav-2.wav",
    "a.wav/b.wav",
    "a.wav!.wav",
    "b c+%.wav",
    "ü🎧.wav",
    "x//y.wav",
    "n" * 300 + ".wav",
    "z.wav",
]


@pytest.mark.parametrize("failed", [False, True])
def test_exactly_what_has_no_result_is_left(deployed, calls, failed, monkeypatch):
    """Keys that begin alike, lie below one another or are too long for a path: each has its own result."""
    monkeypatch.setattr(backlog, "PAGE", 3)  # the last key of a page begins with the first one
    put(*(calls + key for key in KEYS))
    assert set(left(calls, deployed)) == {calls + key for key in KEYS}
    for key in KEYS:
        finish(deployed, key, failed=failed)
        assert set(left(calls, deployed)) == {calls + other for other in KEYS if other != key}
        for address in storage.listing(f"s3://{deployed.bucket}/"):
            storage.remove(address)


def test_what_is_no_recording_is_not_sent(deployed, calls):
    """A folder's marker and a text are no recordings."""
    put(calls + "notes.txt", calls + "folder/", calls + "a.mp3")
    assert left(calls, deployed) == [calls + "a.mp3"]


def test_a_manifest_is_taken_line_by_line(deployed, calls, tmp_path):
    """Empty lines are passed over, a result is found for each, and the next run goes on at a line."""
    manifest = tmp_path / "calls.txt"
    manifest.write_text(f"{calls}b.wav\n\n{calls}a.wav\r\n{calls}c\n")
    finish(deployed, "a.wav")
    (page,) = backlog.in_manifest(manifest, "")
    assert page.positions == ("1", "3", "4")
    assert backlog.without_result(page, f"s3://{deployed.bucket}") == [f"{calls}b.wav", f"{calls}c"]
    (rest,) = backlog.in_manifest(manifest, "3")
    assert rest.addresses == (f"{calls}c",)


@pytest.mark.parametrize("line", ["a.wav", "s3://", "s3://bucket", "s3:///key", "\udcff"])
def test_a_line_that_is_no_address_is_named(tmp_path, line):
    """Nothing of its page is sent."""
    manifest = tmp_path / "bad.txt"
    manifest.write_bytes(f"s3://b/k\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(TranscriptionError, match=r"bad\.txt"):
        list(backlog.in_manifest(manifest, ""))


def test_what_workers_may_not_read_is_refused(deployed, calls):
    """It would only fail there: the line says how to allow it."""
    put(f"s3://{deployed.bucket}/elsewhere/a.wav")
    run = Run(deployed, f"s3://{deployed.bucket}/work/p.json", 100, threading.Event())
    with pytest.raises(TranscriptionError, match="attach-bucket"):
        backfill.send_all(backlog.listed(f"s3://{deployed.bucket}/elsewhere/", ""), run, Progress())
    assert received(deployed) == Counter()


def test_no_more_than_so_many_are_outstanding(deployed, calls, monkeypatch):
    """The queue never holds more than it may; as it empties, the rest comes."""
    put(*(f"{calls}{number}.wav" for number in range(45)))
    monkeypatch.setattr(backfill, "LOOK_SECONDS", 0.05)
    highest, found = 0, Counter()
    run = Run(deployed, f"s3://{deployed.bucket}/work/p.json", 20, threading.Event())
    sender = threading.Thread(target=backfill.send_all, args=(backlog.listed(calls, ""), run, Progress()))
    sender.start()
    while found.total() < 45:
        sender.join(0.5)
        highest = max(highest, fleet_report.queue("backfill", deployed.backfill_url, REGION).waiting)
        entry = aws.sqs().receive_message(QueueUrl=deployed.backfill_url, MaxNumberOfMessages=10).get("Messages", ())
        for message in entry:
            found[json.loads(message["Body"])["key"]] += 1
            aws.sqs().delete_message(QueueUrl=deployed.backfill_url, ReceiptHandle=message["ReceiptHandle"])
    sender.join()
    assert highest == 20
    assert found == Counter({f"{number}.wav": 1 for number in range(45)})


# 2,000 where all tests run; BACKFILL_OBJECTS=20000 takes some minutes, most of them to put the objects there
COUNT = int(os.environ.get("BACKFILL_OBJECTS", "2000"))
DONE = COUNT // 40


@pytest.fixture
def crowd(deployed, calls):
    """Put many recordings there, some with a result."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: put(f"{calls}old/{number:06}.wav"), range(COUNT)))
    for number in range(0, COUNT, COUNT // DONE):
        finish(deployed, f"old/{number:06}.wav")
    return calls


def test_a_backfill_that_is_interrupted_twice_sends_each_once(deployed, crowd, monkeypatch):
    """A Ctrl-C, then a SIGTERM: what was sent is not sent again, and nothing is left out; memory stays flat."""
    monkeypatch.setattr(stacks, "find", lambda *_: deployed)
    monkeypatch.setattr(options, "end_at_once", sys.exit)  # it would end the tests
    sent_before, calls_made, sent, sent_by_then = backfill._send, 0, 0, []
    first, second = COUNT // 80, COUNT // 25  # batches of ten
    number_at = {first: signal.SIGINT, second: signal.SIGTERM}

    def send(stack, addresses):
        nonlocal calls_made, sent
        calls_made += 1
        sent_before(stack, addresses)
        sent += len(addresses)
        if calls_made in number_at:
            sent_by_then.append(sent)
            os.kill(os.getpid(), number_at[calls_made])

    monkeypatch.setattr(backfill, "_send", send)
    arguments = ["s3://calls-b/old/", "--outstanding", str(2 * COUNT), "--region", REGION]
    tracemalloc.start()
    ends, peaks = [], []
    for _ in range(3):
        ends.append(CliRunner().invoke(backfill.backfill, arguments))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert [end.exit_code for end in ends] == [130, 130, 0], ends[2].output
    assert ends[2].stdout == f"{COUNT - DONE} sent, {DONE} passed over, which have a result or a failure\n"
    assert f"going on after {sent_by_then[0]} sent" in ends[1].stderr
    assert f"going on after {sent_by_then[1]} sent" in ends[2].stderr
    wanted = {f"old/{number:06}.wav" for number in range(COUNT) if number % (COUNT // DONE)}
    assert received(deployed) == Counter(dict.fromkeys(wanted, 1))
    assert max(peaks) < 40e6
    counted = CliRunner().invoke(backfill.backfill, [*arguments, "--count"])
    assert counted.stdout == f"{DONE} of {COUNT} done\n"
