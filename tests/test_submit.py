from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from fakes import document

from run_transcription import aws, names, storage, submit, writers
from run_transcription.errors import TranscriptionError
from run_transcription.records import Decoding, Failure, Job, LoadReport, ModelFacts, Result, Transcript
from run_transcription.submit import Outcome, Parcel

BAD = Failure("not_audio", "it holds no sound")
FIRST, SECOND = "0" * 16, "1" * 16


@pytest.fixture
def root(stack):
    """Name the bucket."""
    return f"s3://{stack.bucket}"


@pytest.fixture
def talk(tmp_path):
    """Make a local recording."""
    (tmp_path / "a talk+é.wav").write_bytes(b"sound")
    return tmp_path / "a talk+é.wav"


def finish(root, key, identity=FIRST, error=None, version=None):
    """Write what a worker would about the newest version, or a given one; return its address."""
    folder = names.failed_of(root, key) if error else names.results_of(root, key)
    address = f"{folder}{identity}.json" if error else f"{folder}{identity}/transcript.json"
    version = version or storage.version(f"{root}/{key}")
    job = Job(f"{root}/{key}", address, version_id=version, identity=identity, version=version)
    facts = ModelFacts("model", "revision", "cpu", "float32", "sdpa"), LoadReport("mmap", 0.1)
    transcript = None if error else Transcript("en", 1.0, "transcribe", 1.0, ())
    result = Result("FAILED" if error else "COMPLETED", job, Decoding(), *facts, transcript, error=error)
    written = writers.write_json(result, Path(key))
    assert document(written)
    storage.store(address, written)
    return address


@contextmanager
def finishing(root, key, **how):
    """Stand for a worker that writes its result a while after the upload."""
    stop = threading.Event()

    def watch():
        while not stop.wait(0.1):
            if storage.exists(f"{root}/{key}"):
                finish(root, key, **how)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def run(*arguments):
    """Call the command."""
    return CliRunner().invoke(submit.submit, [str(argument) for argument in arguments])


def test_the_address_of_a_bucket_names_it_too(stack, talk):
    """People type s3:// where a name is asked for; what can be neither is a mistake of usage, in one line."""
    assert run(talk, "--bucket", f"s3://{stack.bucket}/").exit_code == 0
    done = run(talk, "--bucket", "s3://a/b")
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "'s3://a/b' is no name of a bucket" in done.output


def test_files_are_uploaded_and_their_keys_printed(stack, root, talk):
    """Standard output has the keys and nothing else, for the next program."""
    done = run(talk, "--bucket", stack.bucket)
    assert done.exit_code == 0, done.output
    assert done.stdout == "uploads/a talk+é.wav\n"
    assert storage.read(f"{root}/uploads/a talk+é.wav") == b"sound"


def test_a_folder_keeps_its_paths_and_leaves_out_what_is_no_recording(tmp_path):
    """Two recordings of one name in two folders stay two."""
    for name in ("one/a.wav", "two/a.wav", "two/notes.txt"):
        (tmp_path / "talks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "talks" / name).write_bytes(b"sound")
    parcels = submit.pack([tmp_path / "talks"], "in/")
    assert parcels == [
        Parcel(tmp_path / "talks/one/a.wav", "in/one/a.wav"),
        Parcel(tmp_path / "talks/two/a.wav", "in/two/a.wav"),
    ]


def test_two_files_of_one_key_are_refused(tmp_path):
    """One would replace the other in silence."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(b"sound")
    with pytest.raises(TranscriptionError, match=r"would both be uploads/a\.wav"):
        submit.pack([tmp_path / "one/a.wav", tmp_path / "two/a.wav"], "uploads/")


def test_nothing_is_uploaded_when_a_file_is_not_there(stack, root, talk, tmp_path):
    """A mistyped name is one line, and found before the first upload."""
    done = run(talk, tmp_path / "absent.wav", "--bucket", stack.bucket)
    assert done.exit_code == 1
    assert done.stderr == f"Error: there is no file {tmp_path / 'absent.wav'}\n"
    assert list(storage.listing(f"{root}/")) == []


def test_an_absent_bucket_is_one_line(emulator, talk):
    """S3's own words are passed on."""
    done = run(talk, "--bucket", "no-such-bucket")
    assert done.exit_code == 1
    assert "NoSuchBucket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_waiting_ends_with_the_result(stack, root, talk):
    """The address of the json is said as soon as it is there, and before that, who is waited for."""
    with finishing(root, "uploads/a talk+é.wav"):
        done = run(talk, "--bucket", stack.bucket, "--wait")
    assert done.exit_code == 0, done.output
    assert f"done → {root}/results/uploads/a talk+é.wav/{FIRST}/transcript.json" in done.stderr
    assert f"waiting for what a worker of the bucket writes below {root}/results/\n" in done.stderr


def test_waiting_for_a_bad_recording_ends_with_its_reason(stack, root, talk):
    """A failure is an answer too: named, and an exit status of 1."""
    with finishing(root, "uploads/a talk+é.wav", error=BAD):
        done = run(talk, "--bucket", stack.bucket, "--wait")
    assert done.exit_code == 1
    assert "failed: not_audio: it holds no sound" in done.stderr


def test_results_of_older_uploads_are_not_taken_for_this_one(root, talk):
    """After a new upload of a key only a new result ends the wait."""
    key = "uploads/a.wav"
    storage.store(f"{root}/{key}", b"older")
    finish(root, key)
    sent = submit.send(Parcel(talk, key), root, lambda _: None)
    newer = finish(root, key, SECOND)
    assert list(submit.wait_for([sent], root)) == [Outcome(key, newer)]


@pytest.mark.parametrize("error", [None, BAD])
def test_an_older_uploads_late_result_is_not_taken_for_this_one(root, talk, error):
    """A worker may still be at the older upload: its document, good or bad, names the version that it is about."""
    key = "uploads/a.wav"
    storage.store(f"{root}/{key}", b"older")
    older = storage.version(f"{root}/{key}")
    sent = submit.send(Parcel(talk, key), root, lambda _: None)
    finish(root, key, FIRST, error, version=older)
    newer = finish(root, key, SECOND)
    assert list(submit.wait_for([sent], root)) == [Outcome(key, newer)]


def test_a_slash_at_the_end_of_the_output_means_nothing(root, talk):
    """The worker's results are found however the same output is written."""
    sent = submit.send(Parcel(talk, "uploads/a.wav"), root, lambda _: None)
    address = finish(root, "uploads/a.wav")
    assert list(submit.wait_for([sent], f"{root}/")) == [Outcome("uploads/a.wav", address)]


def test_a_name_that_is_no_utf_8_is_refused_before_anything_is_uploaded(stack, root, talk, tmp_path):
    """Keys are UTF-8: a file whose name is other bytes is named, with what to do."""
    bad = tmp_path / "caf\udce9.wav"
    bad.write_bytes(b"sound")
    done = run(talk, bad, "--bucket", stack.bucket)
    assert done.exit_code == 1
    assert "caf\\udce9.wav: its name is no UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(storage.listing(f"{root}/")) == []


def test_a_name_that_is_too_long_is_no_file(stack, talk):
    """The system's own error about it is said as any other absent file."""
    done = run(talk, f"{'n' * 300}.wav", "--bucket", stack.bucket)
    assert done.exit_code == 1
    assert f"there is no file {'n' * 300}.wav" in done.stderr


def test_the_same_content_without_versions_has_its_result_already(root, talk, stack):
    """A worker passes over what it has done: waiting for a second result would never end."""
    aws.s3().put_bucket_versioning(Bucket=stack.bucket, VersioningConfiguration={"Status": "Suspended"})
    key = "uploads/a.wav"
    storage.upload(talk, f"{root}/{key}")
    older = finish(root, key)
    sent = submit.send(Parcel(talk, key), root, lambda _: None)
    assert list(submit.wait_for([sent], root)) == [Outcome(key, older)]


def test_an_older_uploads_late_result_without_versions_is_not_this_ones(root, talk, stack):
    """Without versions the eTag tells two contents apart: the older one's result may come after the newer upload."""
    aws.s3().put_bucket_versioning(Bucket=stack.bucket, VersioningConfiguration={"Status": "Suspended"})
    key = "uploads/a.wav"
    storage.store(f"{root}/{key}", b"older")
    older = storage.version(f"{root}/{key}")
    sent = submit.send(Parcel(talk, key), root, lambda _: None)
    finish(root, key, FIRST, version=older)
    newer = finish(root, key, SECOND)
    assert list(submit.wait_for([sent], root)) == [Outcome(key, newer)]


def test_results_below_a_longer_key_are_not_this_ones(root, talk):
    """`uploads/a` is not done when `uploads/a/b.wav` is."""
    sent = submit.send(Parcel(talk, "uploads/a"), root, lambda _: None)
    finish(root, "uploads/a/b.wav")
    finish(root, "uploads/a/b.wav", error=BAD)
    own = finish(root, "uploads/a")
    assert list(submit.wait_for([sent], root)) == [Outcome("uploads/a", own)]
