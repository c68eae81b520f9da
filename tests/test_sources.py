from __future__ import annotations

import json
import os
import time
from urllib.parse import quote_plus

import pytest
from fakes import counts

from run_transcription import aws, sources, storage
from run_transcription.errors import TranscriptionError
from run_transcription.leases import Keeper
from run_transcription.sources import FolderSource, SqsSource

KEYS = [
    "uploads/a b+c%20d%é.wav",
    "uploads/line\nend \"quoted\" 'too'.mp3",
    "uploads/🎧/x&y=z;#?.m4a",
    "uploads/-v.wav",
]


@pytest.fixture
def source(stack):
    """Listen to the stack's queue, without the test event that S3 sends first."""
    source = SqsSource(stack.queue_url, Keeper(30))
    announced = source.receive()
    assert announced is not None
    assert announced.uploads == ()
    announced.finish()
    return source


def send(stack, body):
    """Put a message into the queue."""
    aws.sqs().send_message(QueueUrl=stack.queue_url, MessageBody=body if isinstance(body, str) else json.dumps(body))


def record(key, name="ObjectCreated:Put", size=9, **more):
    """Return one record of an S3 event, as S3 writes it."""
    found = {"key": quote_plus(key), "size": size, "eTag": "e1", "sequencer": "0A", **more}
    return {"eventName": name, "s3": {"bucket": {"name": "bucket"}, "object": found}}


@pytest.mark.parametrize("key", KEYS)
def test_an_upload_arrives_under_its_own_name(stack, source, key):
    """Whatever characters a key has, it is the key that was uploaded, with its version."""
    address = f"s3://{stack.bucket}/{key}"
    storage.store(address, b"sound")
    delivery = source.receive()
    (upload,) = delivery.uploads
    assert upload.address == address
    assert upload.version == upload.version_id == storage.version(address)


def test_all_records_of_a_message_arrive_in_order(stack, source):
    """One message may announce several recordings; folders and removals among them are none."""
    records = [record(KEYS[0]), record("uploads/folder/", size=0), record("uploads/b.wav", versionId="v7")]
    send(stack, {"Records": [*records, record("uploads/gone.wav", "ObjectRemoved:Delete")]})
    uploads = source.receive().uploads
    assert [(upload.key, upload.version, upload.version_id) for upload in uploads] == [
        (KEYS[0], "e1", None),
        ("uploads/b.wav", "v7", "v7"),
    ]


def test_poison_goes_to_the_dead_letters_at_once_with_its_reason(stack, source):
    """It neither stops the worker nor comes five times: a person finds it, and why, and the next message is taken."""
    send(stack, "poison")
    send(stack, {"Records": [record("uploads/a.wav")]})
    uploads = [delivery.uploads for delivery in (source.receive(), source.receive()) if delivery]
    assert [upload.key for (upload,) in uploads] == ["uploads/a.wav"]
    assert counts(stack.queue_url) == (0, 1)
    found = aws.sqs().receive_message(QueueUrl=stack.dead_letter_url, MessageAttributeNames=["All"])["Messages"]
    assert [message["Body"] for message in found] == ["poison"]
    assert "no JSON" in found[0]["MessageAttributes"]["reason"]["StringValue"]


def test_poison_without_a_dead_letter_queue_is_left_where_it_is(emulator, caplog):
    """Nothing is ever thrown away; that there is no such queue is said at the start."""
    url = aws.sqs().create_queue(QueueName="no-dead-letters")["QueueUrl"]
    aws.sqs().send_message(QueueUrl=url, MessageBody="poison")
    assert SqsSource(url).receive() is None
    assert counts(url) == (0, 1)
    assert "has no dead-letter queue" in caplog.messages[0]


def test_a_delivery_knows_how_often_it_came_and_how_long_it_waited(stack, source):
    """The lag is that of the first receipt alone: afterwards it says nothing of the queue."""
    send(stack, {"Records": [record("uploads/a.wav")]})
    time.sleep(1.1)
    first = source.receive()
    assert first.receives == 1
    assert 1.0 <= first.lag < 30
    first.release()
    again = source.receive()
    assert (again.receives, again.lag) == (2, None)


def test_live_work_goes_before_a_backfill(stack, source):
    """The second queue is only asked while the first one is empty."""
    url = aws.sqs().create_queue(QueueName=f"{stack.bucket}-backfill")["QueueUrl"]
    both = sources.InOrder((SqsSource(stack.queue_url, poll_seconds=1), SqsSource(url, poll_seconds=1)))
    aws.sqs().send_message(QueueUrl=url, MessageBody=json.dumps({"Records": [record("uploads/old.wav")]}))
    send(stack, {"Records": [record("uploads/new.wav")]})
    assert [both.receive().uploads[0].key for _ in range(2)] == ["uploads/new.wav", "uploads/old.wav"]
    assert both.receive() is None


def test_a_queue_that_is_none_is_said_in_our_words(emulator):
    """A name in the place of an address is the usual mistake."""
    with pytest.raises(TranscriptionError, match="'transcribe' is no address of a queue: give the QueueUrl"):
        SqsSource("transcribe")


def test_a_finished_message_is_gone_and_a_released_one_is_back_at_once(stack, source):
    """Giving back must not wait for the visibility timeout of 30 s."""
    send(stack, {"Records": [record("uploads/a.wav")]})
    source.receive().release()
    assert counts(stack.queue_url) == (1, 0)
    source.receive().finish()
    assert counts(stack.queue_url) == (0, 0)


def test_an_absent_queue_is_one_line(emulator, stack):
    """A mistyped queue is found before the model is loaded."""
    with pytest.raises(
        TranscriptionError, match=r"cannot use the queue http.*-x: there is no such queue \(.*NonExistentQueue"
    ):
        SqsSource(stack.queue_url + "-x")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/q", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/q", "cn-north-1"),
        ("http://127.0.0.1:4566/000000000000/q", None),
    ],
)
def test_the_region_is_read_from_the_queues_address(url, region):
    """A worker needs no region beside its queue's address."""
    assert sources._region_of(url) == region


@pytest.fixture
def inbox(tmp_path):
    """Make a folder with two recordings, a text and what is hidden; all of them old enough."""
    folder = tmp_path / "inbox"
    for name in ("b.wav", "sub/a ü.mp3", "notes.txt", ".part.wav", ".hidden/c.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"sound")
        os.utime(folder / name, (1, 1))
    return folder


def folder_source(inbox):
    """Watch a folder for two kinds of file."""
    return FolderSource(inbox, lambda name: name.endswith((".wav", ".mp3")))


def test_a_folder_hands_out_each_recording_once(inbox):
    """Hidden files and those of another kind are left alone, and what was handed out does not come again."""
    source = folder_source(inbox)
    uploads = [source.receive().uploads[0] for _ in range(2)]
    assert [upload.key for upload in uploads] == ["b.wav", "sub/a ü.mp3"]
    assert uploads[1].address == str(inbox / "sub/a ü.mp3")
    assert source.receive() is None


def test_a_file_that_may_not_be_looked_at_stops_nobody(inbox, monkeypatch):
    """What the system refuses to tell of a file is no reason to leave the others alone."""
    look = os.stat

    def refuse(path, *arguments, **options):
        if str(path).endswith("a ü.mp3"):
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    source = folder_source(inbox)
    assert source.receive().uploads[0].key == "b.wav"
    assert source.receive() is None


def test_a_file_that_changes_is_a_new_recording(inbox):
    """The same name with another content gets a version of its own."""
    source = folder_source(inbox)
    first = source.receive().uploads[0]
    source.receive()
    (inbox / "b.wav").write_bytes(b"other sound")
    os.utime(inbox / "b.wav", (2, 2))
    second = source.receive().uploads[0]
    assert first.key == second.key == "b.wav"
    assert first.version != second.version


def test_a_file_that_still_grows_is_waited_for(inbox):
    """Half a recording must not be transcribed: a file is taken a second after its last change."""
    source = folder_source(inbox)
    source.receive(), source.receive()
    (inbox / "new.wav").write_bytes(b"so")
    began = time.monotonic()
    assert source.receive().uploads[0].key == "new.wav"
    assert time.monotonic() - began > 0.7


def test_a_recording_that_fails_comes_again_but_not_for_ever(inbox):
    """Given back, it is handed out three times in all, after the others."""
    source = folder_source(inbox)
    keys = []
    while (delivery := source.receive()) is not None:
        keys.append(delivery.uploads[0].key)
        if keys[-1] == "b.wav":
            delivery.release()
        else:
            delivery.finish()
    assert keys == ["b.wav", "sub/a ü.mp3", "b.wav", "b.wav"]


def test_no_folder_is_one_line(tmp_path):
    """A mistyped folder is found before the model is loaded."""
    with pytest.raises(TranscriptionError, match="is no folder"):
        folder_source(tmp_path / "absent")
    with pytest.raises(TranscriptionError, match="is no folder"):
        folder_source(tmp_path / ("n" * 300))
