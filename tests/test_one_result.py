from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from fakes import counts, tone
from faults import speech
from working import ONCE, before_each_batch, journal_of, json_below, refusing

from run_transcription import ahead, aws, direct_transcribe, fast_transcribe, names, storage, worker
from run_transcription.demo.emulator import make_stack
from run_transcription.leases import Keeper
from run_transcription.sources import SqsSource
from run_transcription.uploads import Upload


def test_a_message_is_deleted_only_once_its_result_is_there(shift, queue, stack, recording, capsys):
    """The result lies in the bucket, the message is gone, no temporary file is left, and the journal has its line."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    worker.work(shift, queue, ONCE)
    (address,) = json_below(f"s3://{stack.bucket}/results/")
    assert "/uploads/a.wav/" in address
    assert counts(stack.queue_url) == (0, 0)
    assert list(shift.folder.iterdir()) == []
    (line,) = journal_of(capsys)
    assert (line["status"], line["retries"], line["audio_seconds"]) == ("COMPLETED", 0, 1.0)


def test_a_duplicate_is_done_once(shift, queue, stack, recording, capsys):
    """The same event three times, also right behind itself, gives one result, heard and written once."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    for _ in range(2):
        body = json.dumps({"bucket": stack.bucket, "key": "uploads/a.wav"})
        aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    heard = []
    before_each_batch(shift, lambda windows: heard.append(len(windows)))
    worker.work(shift, queue, ONCE)
    assert heard == [1]
    assert sorted(line["status"] for line in journal_of(capsys)) == ["COMPLETED", "DONE_BEFORE", "DONE_BEFORE"]
    assert counts(stack.queue_url) == (0, 0)
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 1


def test_who_is_overtaken_leaves_the_other_result_and_tells_nobody(shift, queue, stack, recording, capsys):
    """A recording is counted and announced by the worker whose result stays."""
    storage.upload(recording, f"s3://{stack.bucket}/uploads/a.wav")
    told = []
    shift.journal.notify = told.append

    def overtake(_windows):
        storage.store(f"{shift.current.known_job.results}.json", b'{"another": "worker"}')

    before_each_batch(shift, overtake)
    worker.work(shift, queue, ONCE)
    assert [line["status"] for line in journal_of(capsys)] == ["DONE_BEFORE"]
    assert told == []
    (address,) = [each for each in storage.listing(f"s3://{stack.bucket}/results/") if each.endswith(".json")]
    assert storage.read(address) == b'{"another": "worker"}'
    assert counts(stack.queue_url) == (0, 0)


def test_a_message_with_several_recordings_ends_with_its_last(shift, queue, stack, recording, no_pause):
    """One of them fails at first: the message comes again, and the other one is not done twice."""
    for name in ("a", "b"):
        storage.upload(recording, f"s3://{stack.bucket}/elsewhere/{name}.wav")
    found = [{"key": f"elsewhere/{name}.wav", "size": 9} for name in ("a", "b")]
    for each in found:
        each["versionId"] = storage.version(f"s3://{stack.bucket}/{each['key']}")
    records = [
        {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": stack.bucket}, "object": each}} for each in found
    ]
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps({"Records": records}))
    refusing(shift, ZeroDivisionError())
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert len(json_below(f"s3://{stack.bucket}/results/")) == 2


def test_three_uploads_of_one_key_have_three_results(shift, queue, stack, tmp_path):
    """However fast they follow one another, each content is transcribed as what it is."""
    sound = speech.samples()
    words = {}
    for number in range(3):
        path = speech.write(tmp_path / f"{number}.wav", sound[number * 160_000 : number * 160_000 + 128_000])
        storage.upload(path, f"s3://{stack.bucket}/uploads/a.wav")
        words[storage.version(f"s3://{stack.bucket}/uploads/a.wav")] = path
    worker.work(shift, queue, ONCE)
    found = json_below(f"s3://{stack.bucket}/results/").values()
    assert len(found) == len({said["input"]["identity"] for said in found}) == 3
    for said in found:
        job = names.job_for(Upload(str(tmp_path), "x", "1"), str(tmp_path), "0" * 16)
        path = words[said["input"]["version"]]
        alone = fast_transcribe.transcribe_file(path, job, shift.desk.handle, shift.desk.decoding)
        assert said["text"] == alone.transcript.text
    assert len({said["text"] for said in found}) == 3


@pytest.mark.parametrize("fate", ["removed", "replaced"])
def test_a_recording_that_is_gone_by_now_is_done_with(shift, emulator, recording, capsys, fate):
    """Without versions another content may lie in its place: it has its own event, and never the old identity."""
    stack = make_stack(f"gone-{fate}", versioned=False)
    shift.desk = replace(shift.desk, buckets=frozenset({stack.bucket}))
    address = f"s3://{stack.bucket}/uploads/a.wav"
    storage.store(address, b"the first content")
    source = SqsSource(stack.queue_url, Keeper(30), poll_seconds=0)
    source.receive().finish()
    if fate == "removed":
        storage.remove(address)
    else:
        storage.upload(recording, address)
    worker.work(shift, source, ONCE)
    lines = journal_of(capsys)
    assert [line["status"] for line in lines] == ["GONE", "COMPLETED"][: 1 + (fate == "replaced")]
    assert len({line["identity"] for line in lines}) == len(lines)
    assert list(storage.listing(f"s3://{stack.bucket}/failed/")) == []
    assert counts(stack.queue_url) == (0, 0)


def test_a_job_may_ask_for_its_own_options(shift, queue, stack, recording):
    """Language and formats of one job are part of its identity; what the model can't do is its failure."""
    storage.upload(recording, f"s3://{stack.bucket}/elsewhere/a.wav")
    for options in ({"language": "german", "formats": ["vtt"]}, {"language": "klingon"}, {"formats": ["doc"]}):
        body = json.dumps({"bucket": stack.bucket, "key": "elsewhere/a.wav", "options": options})
        aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    worker.work(shift, queue, ONCE)
    (said,) = json_below(f"s3://{stack.bucket}/results/").values()
    assert (said["options"]["language"], set(said["files"])) == ("de", {"vtt"})
    failed = json_below(f"s3://{stack.bucket}/failed/").values()
    assert [one["error"]["code"] for one in failed] == ["unsupported_option"] * 2


@pytest.mark.parametrize("key", ["uploads/../../x", "uploads/-rf"])
def test_a_key_that_is_made_to_harm_is_refused(shift, queue, stack, key):
    """It is never fetched; its failure says why, under a name that leads nowhere."""
    body = json.dumps({"bucket": stack.bucket, "key": key, "version_id": "v1"})
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body)
    worker.work(shift, queue, ONCE)
    ((address, said),) = json_below(f"s3://{stack.bucket}/failed/").items()
    assert said["error"]["code"] == "refused_key"
    assert ".." not in address


def test_a_bucket_that_the_worker_was_not_told_is_refused(shift, queue, stack):
    """Whoever may send a message must not choose what the worker's role reads."""
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody='{"bucket": "another-bucket", "key": "secret"}')
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert counts(stack.dead_letter_url) == (1, 0)


@pytest.mark.parametrize("own", ["results/a.wav", "failed/a.wav", "work/a.wav"])
def test_what_a_worker_wrote_is_no_recording(shift, queue, stack, recording, own):
    """A notification without a prefix announces our own files too: they end there."""
    storage.upload(recording, f"s3://{stack.bucket}/{own}")
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=json.dumps({"bucket": stack.bucket, "key": own}))
    worker.work(shift, queue, ONCE)
    assert counts(stack.queue_url) == (0, 0)
    assert json_below(f"s3://{stack.bucket}/") == {}


def test_the_next_recordings_are_listened_to_while_the_model_works(shift, queue, stack, tmp_path, monkeypatch):
    """When the model comes to a recording, it knows already where somebody speaks."""
    for number in range(4):
        storage.upload(tone(tmp_path / "a.wav", 1 + number), f"s3://{stack.bucket}/uploads/{number}.wav")
    heard, ready = [], []

    def listen(*arguments):
        for blocks in direct_transcribe.listen(*arguments):
            heard.append(blocks)
            yield blocks

    def look(_windows):
        time.sleep(1.0)
        ready.append(len(heard))

    monkeypatch.setattr(ahead, "listen", listen)
    before_each_batch(shift, look)
    worker.work(shift, queue, ONCE)
    assert ready == [3, 4, 4, 4]
