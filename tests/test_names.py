from __future__ import annotations

from dataclasses import replace

import pytest

from run_transcription import names
from run_transcription.errors import Rejected
from run_transcription.records import Decoding, ModelFacts
from run_transcription.uploads import Upload

UPLOAD = Upload("s3://bucket", "uploads/a b.wav", "v1", "v1")
MODEL = ModelFacts("model", "revision", "cpu", "float32", "sdpa")
SAME = (UPLOAD, MODEL, Decoding(), ("json", "txt"))


@pytest.mark.parametrize(
    "other",
    [
        (replace(UPLOAD, root="s3://other"), *SAME[1:]),
        (replace(UPLOAD, key="uploads/b.wav"), *SAME[1:]),
        (replace(UPLOAD, version="v2"), *SAME[1:]),
        (UPLOAD, replace(MODEL, revision="other"), *SAME[2:]),
        (UPLOAD, replace(MODEL, dtype="bfloat16"), *SAME[2:]),
        (UPLOAD, replace(MODEL, engine="other"), *SAME[2:]),
        (UPLOAD, MODEL, Decoding(language="de"), ("json", "txt")),
        (UPLOAD, MODEL, Decoding(batch_size=1), ("json", "txt")),
        (UPLOAD, MODEL, Decoding(), ("json",)),
    ],
)
def test_another_content_model_or_option_gives_another_identity(other):
    """No result is ever taken for that of another version, model or set of options."""
    assert names.identity(*other) != names.identity(*SAME)


def test_the_same_job_has_the_same_identity_everywhere():
    """A second worker must find the first one's result, so the identity is fixed, whatever the formats' order."""
    assert names.identity(UPLOAD, MODEL, Decoding(), ("txt", "json")) == names.identity(*SAME)
    assert len(names.identity(*SAME)) == 16


def test_results_lie_below_key_and_identity():
    """The names are those that the documentation gives."""
    job = names.job_for(UPLOAD, "s3://out/texts", "0123456789abcdef")
    assert job.recording == "s3://bucket/uploads/a b.wav"
    assert job.results == "s3://out/texts/results/uploads/a b.wav/0123456789abcdef/transcript"
    assert job.failed == "s3://out/texts/failed/uploads/a b.wav/0123456789abcdef.json"
    assert (job.version_id, job.identity) == ("v1", "0123456789abcdef")


def test_a_slash_at_the_end_of_an_output_means_nothing():
    """`-o s3://out/texts/` is the place that `-o s3://out/texts` is: a key with two slashes is another key."""
    assert names.job_for(UPLOAD, "s3://out/texts/", "id") == names.job_for(UPLOAD, "s3://out/texts", "id")
    assert names.results_of("s3://out/", "uploads/a") == "s3://out/results/uploads/a/"
    assert names.failed_of("s3://out/", "uploads/a") == "s3://out/failed/uploads/a/"


@pytest.mark.parametrize("key", ["é" * 480, "a/../../b.wav", "/a.wav", "a//b.wav", "n" * 300, "a\0b", "./a"])
def test_a_key_that_is_no_path_is_replaced_by_its_hash(key):
    """Whatever the key, the name fits S3 and no file system is left: the hash stands for it."""
    job = names.job_for(replace(UPLOAD, key=key), "s3://bucket", "0123456789abcdef")
    assert len(f"{job.results}.json".encode()) <= 1024
    assert key not in job.results
    assert ".." not in job.results
    assert len(job.results.split("/")) == len(["s3:", "", "bucket", "results", "hash", "identity", "transcript"])


def test_a_name_that_is_no_text_has_an_identity_too():
    """A file name of any bytes, or half a character in JSON, is no reason to fail."""
    upload = replace(UPLOAD, key="\udce9\ud800.wav")
    assert names.identity(upload, *SAME[1:])
    assert names.job_for(upload, "out", "0123456789abcdef").results.endswith("/transcript")


@pytest.mark.parametrize("key", ["uploads/../../x", "..", "uploads/./a.wav", "a\0b", "-rf", "uploads/--output=x.wav"])
def test_a_key_that_is_no_name_is_refused(key):
    """What would lead out of a folder, or be read as an option by the next program, is refused with its reason."""
    with pytest.raises(Rejected) as caught:
        names.check_key(key)
    assert caught.value.code == "refused_key"


@pytest.mark.parametrize(
    "key", ["uploads/a b+c%20é.wav", "uploads/line\nend.wav", "uploads//a.wav", "a-b.wav", "..a/b.."]
)
def test_an_odd_name_is_a_name(key):
    """Only what is dangerous is refused."""
    names.check_key(key)
