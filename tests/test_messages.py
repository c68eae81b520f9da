from __future__ import annotations

import json
from urllib.parse import quote_plus

import pytest

from run_transcription.messages import Poison, uploads_in
from run_transcription.uploads import Upload

KEYS = [
    "uploads/a b+c%20d%é.wav",
    "uploads/line\nend \"quoted\" 'too'.mp3",
    "uploads/🎧/x&y=z;#?.m4a",
    "uploads/50%.wav",
]


def event(key, version="2.1", name="ObjectCreated:Put", **more):
    """Return an S3 event of one record, as S3 writes it."""
    found = {"key": quote_plus(key), "size": 9, "eTag": "e1", "sequencer": "0A", **more}
    return {
        "Records": [{"eventVersion": version, "eventName": name, "s3": {"bucket": {"name": "bucket"}, "object": found}}]
    }


def wrapped(inside):
    """Return a message of SNS around another one."""
    return {"Type": "Notification", "Message": json.dumps(inside)}


def bridge(key, kind="Object Created", **more):
    """Return an event of EventBridge, which does not encode keys."""
    found = {"key": key, "size": 9, "etag": "e1", "sequencer": "0A", **more}
    return {"source": "aws.s3", "detail-type": kind, "detail": {"bucket": {"name": "bucket"}, "object": found}}


def read(message):
    """Read a message's uploads."""
    return uploads_in(json.dumps(message))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "shape",
    [event, lambda key: wrapped(event(key)), bridge, lambda key: wrapped(bridge(key))],
    ids=["s3", "sns", "eb", "sns-eb"],
)
def test_every_shape_names_the_same_recording(shape, key):
    """However an event comes, the key is the one that was uploaded, whatever characters it has."""
    assert read(shape(key)) == (Upload("s3://bucket", key, "e1", None, "0A"),)


@pytest.mark.parametrize("version", ["2.1", "2.2", "2.3", "2.4", "2.5", "2.6"])
def test_all_versions_of_s3s_events_are_known(version):
    """S3 adds fields and counts its versions up; the name of the event may begin with s3:."""
    (upload,) = read(event("uploads/a.wav", version, "s3:ObjectCreated:CompleteMultipartUpload", versionId="v7"))
    assert (upload.version, upload.version_id) == ("v7", "v7")


def test_a_job_by_hand_may_say_how_it_wants_to_be_done():
    """Bucket and key are enough; version and options may be given."""
    assert read({"bucket": "bucket", "key": "a b+c.wav"}) == (Upload("s3://bucket", "a b+c.wav", ""),)
    options = {"language": "de", "task": "translate", "formats": ["srt"]}
    (upload,) = read({"bucket": "bucket", "key": "a.wav", "version_id": "v7", "options": options})
    assert (upload.version, upload.version_id) == ("v7", "v7")
    assert upload.options == (("formats", "srt"), ("language", "de"), ("task", "translate"))


@pytest.mark.parametrize(
    "message",
    [
        {"Event": "s3:TestEvent", "Bucket": "bucket"},
        wrapped({"Event": "s3:TestEvent"}),
        {"Records": []},
        event("uploads/folder/", size=0),
        bridge("uploads/folder/", size=0),
        event("uploads/a.wav", name="ObjectRemoved:Delete"),
        bridge("uploads/a.wav", "Object Deleted"),
    ],
)
def test_what_announces_no_recording_is_no_error(message):
    """Test events, removals and the empty objects that consoles make for folders are done with at once."""
    assert read(message) == ()


def test_an_empty_file_is_no_folder():
    """A zero-byte recording must get its failure; only a name that ends in a slash is a folder."""
    assert [upload.key for upload in read(event("uploads/empty.wav", size=0))] == ["uploads/empty.wav"]


@pytest.mark.parametrize(
    "body",
    [
        *(
            "",
            "text",
            "[]",
            "7",
            "null",
            "{}",
            '{"Records": 7}',
            '{"Records": [{}]}',
            '{"Records": [[]]}',
            "[" * 100_000,
        ),
        json.dumps(event("x", version="3.0")),
        json.dumps(event("x")).replace('"x"', "7"),
        json.dumps(event("x")).replace('"x"', '""'),
        json.dumps(event("x")).replace('"bucket"}', '"a/b"}'),
        json.dumps(event("x")).replace('"x"', '"%ff"'),
        json.dumps({"bucket": "bucket", "key": "\ud800"}),
        json.dumps({"bucket": "bucket", "key": "x", "command": "rm"}),
        json.dumps({"bucket": "bucket", "key": "x", "options": 7}),
        json.dumps(wrapped(wrapped(wrapped(wrapped(event("x")))))),
        json.dumps({"Type": "Notification", "Message": 7}),
        json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": None}),
    ],
)
def test_another_shape_is_poison_with_a_reason(body):
    """Nothing that can stand in a message is a crash."""
    with pytest.raises(Poison, match="^it (is|names) "):
        uploads_in(body)
