from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from run_transcription import (
    aws,
    backfill,
    backlog,
    fleet_report,
    names,
    options,
    recordings,
    stacks,
    storage,
    writers,
)
from run_transcription.backfill import Progress, Run
from run_transcription.errors import TranscriptionError
from run_transcription.records import (
    Decoding,
    Failure,
    Job,
    LoadReport,
    ModelFacts,
    Result,
    Transcript,
)

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
    return [address for page in pages for address in backfill._left_of(page, stack)]


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


@pytest.mark.parametrize("error", [None, Failure("no_audio", "no sound in it")])
@pytest.mark.parametrize("source", ["s3://calls-b/", "manifest"])
def test_the_result_of_another_buckets_recording_is_not_taken_for_ones_own(deployed, calls, tmp_path, source, error):
    """Two attached buckets, and the stack's own, may have the same key: each recording needs a result of its own."""
    more = replace(deployed, attached=("calls-b", "calls-c"))
    key = f"{names.UPLOADS}a.wav"
    aws.s3().create_bucket(Bucket="calls-c")
    addresses = [f"s3://{bucket}/{key}" for bucket in (deployed.bucket, "calls-b", "calls-c")]
    put(*addresses)
    manifest = tmp_path / "all.txt"
    manifest.write_text("\n".join(addresses))

    def still_left():
        pages = backlog.in_manifest(manifest, "") if source == "manifest" else backlog.listed(source, "")
        return [address for page in pages for address in backfill._left_of(page, more)]

    asked = addresses if source == "manifest" else addresses[1:2]
    assert still_left() == asked
    for number, address in enumerate(addresses):
        write_result(f"s3://{deployed.bucket}", address, f"{number:016}", error)
        assert still_left() == [each for each in asked if each not in addresses[: number + 1]]
    storage.remove_bucket("calls-c")


def write_result(output, recording, identity, error):
    """Write the json that a worker would about a recording of any bucket."""
    key = storage.split(recording)[1]
    failed, done = f"{names.failed_of(output, key)}{identity}", f"{names.results_of(output, key)}{identity}/transcript"
    place, status = (failed, "FAILED") if error else (done, "COMPLETED")
    facts = ModelFacts("model", "revision", "cpu", "float32", "sdpa"), LoadReport("mmap", 0.1)
    transcript = None if error else Transcript("en", 1.0, "transcribe", 1.0, ())
    result = Result(status, Job(recording, place), Decoding(), *facts, transcript, error=error)
    storage.store(f"{place}.json", writers.write_json(result, Path(key)))


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
    assert backfill._left_of(page, deployed) == [f"{calls}b.wav", f"{calls}c"]
    (rest,) = backlog.in_manifest(manifest, "3")
    assert rest.addresses == (f"{calls}c",)


def test_a_manifest_says_of_how_many_and_what_is_gone(deployed, calls, tmp_path, monkeypatch):
    """What is gone never gets a result: it is counted apart, so that the count comes to an end."""
    monkeypatch.setattr(stacks, "find", lambda *_: deployed)
    manifest = tmp_path / "calls.txt"
    manifest.write_text(f"{calls}done.wav\n\n{calls}open.wav\n{calls}gone.wav\n")
    put(f"{calls}done.wav", f"{calls}open.wav")
    finish(deployed, "done.wav")
    counted, sent = (
        CliRunner().invoke(backfill.backfill, ["--manifest", str(manifest), "--region", REGION, *more])
        for more in (["--count"], [])
    )
    assert counted.stdout == "1 of 3 done, 1 gone: no such object\n"
    assert "2 sent, 1 passed over, of 3\n" in sent.stderr


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
    monkeypatch.setattr(backfill, "SETTLE_SECONDS", 0.0)  # the emulator counts at once
    highest, found = 0, Counter()
    run = Run(deployed, f"s3://{deployed.bucket}/work/p.json", 20, threading.Event())
    sender = threading.Thread(target=backfill.send_all, args=(backlog.listed(calls, ""), run, Progress()))
    sender.start()
    while fleet_report.queue("backfill", deployed.backfill_url, REGION).waiting < 20:
        sender.join(0.05)
    while found.total() < 45:
        sender.join(0.1)
        highest = max(highest, fleet_report.queue("backfill", deployed.backfill_url, REGION).waiting)
        entry = aws.sqs().receive_message(QueueUrl=deployed.backfill_url, MaxNumberOfMessages=10).get("Messages", ())
        for message in entry:
            found[json.loads(message["Body"])["key"]] += 1
            aws.sqs().delete_message(QueueUrl=deployed.backfill_url, ReceiptHandle=message["ReceiptHandle"])
    sender.join()
    assert highest == 20
    assert found == Counter({f"{number}.wav": 1 for number in range(45)})


def test_what_sqs_has_not_counted_yet_counts(deployed, calls, monkeypatch):
    """Its counts are late by up to a minute: until then what was sent is taken for waiting."""
    put(*(f"{calls}{number}.wav" for number in range(45)))
    queue = fleet_report.Queue("backfill", 0, 0)
    monkeypatch.setattr(fleet_report, "queue", lambda *_: queue)  # as SQS answers in the first minute
    monkeypatch.setattr(backfill, "LOOK_SECONDS", 0.05)
    run = Run(deployed, f"s3://{deployed.bucket}/work/p.json", 20, threading.Event())
    threading.Timer(1.0, run.stop.set).start()
    with pytest.raises(KeyboardInterrupt):
        backfill.send_all(backlog.listed(calls, ""), run, Progress())
    assert received(deployed).total() == 20
    run.stop.clear()
    monkeypatch.setattr(backfill, "SETTLE_SECONDS", 0.0)
    backfill.send_all(backlog.listed(calls, ""), run, Progress())
    assert received(deployed).total() == 45


COUNT = 800  # benchmarks/backfill.py has 20,000
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
    """A Ctrl-C, then a SIGTERM: what was sent is not sent again, and nothing is left out; a page is listed when due."""
    monkeypatch.setattr(stacks, "find", lambda *_: deployed)
    monkeypatch.setattr(options, "end_at_once", sys.exit)  # it would end the tests
    monkeypatch.setattr(backfill, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(backlog, "PAGE", COUNT // 4)
    sent_before, calls_made, sent, sent_by_then, listed_by_then = backfill._send, 0, 0, [], []
    could_be_audio, listed = recordings.could_be_audio, 0

    def look(address):
        nonlocal listed
        listed += 1
        return could_be_audio(address)

    first, second = COUNT // 80, COUNT // 25  # batches of ten
    number_at = {first: signal.SIGINT, second: signal.SIGTERM}

    def send(stack, addresses):
        nonlocal calls_made, sent
        calls_made += 1
        sent_before(stack, addresses)
        sent += len(addresses)
        if calls_made in number_at:
            sent_by_then.append(sent)
            listed_by_then.append(listed)
            os.kill(os.getpid(), number_at[calls_made])

    monkeypatch.setattr(backfill, "_send", send)
    monkeypatch.setattr(recordings, "could_be_audio", look)
    arguments = ["s3://calls-b/old/", "--outstanding", str(2 * COUNT), "--region", REGION]
    ends = [CliRunner().invoke(backfill.backfill, arguments) for _ in range(3)]
    assert [end.exit_code for end in ends] == [130, 130, 0], ends[2].output
    assert ends[2].stdout == f"{COUNT - DONE} sent, {DONE} passed over, which have a result or a failure\n"
    assert f"going on after {sent_by_then[0]} sent" in ends[1].stderr
    assert f"going on after {sent_by_then[1]} sent" in ends[2].stderr
    wanted = {f"old/{number:06}.wav" for number in range(COUNT) if number % (COUNT // DONE)}
    assert received(deployed) == Counter(dict.fromkeys(wanted, 1))
    assert listed_by_then[0] == backlog.PAGE
    counted = CliRunner().invoke(backfill.backfill, [*arguments, "--count"])
    assert counted.stdout == f"{DONE} of {COUNT} done\n"
