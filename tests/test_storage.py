from __future__ import annotations

import hashlib
import os

import pytest
from botocore.stub import Stubber

from run_transcription import aws, storage, writers
from run_transcription.demo.emulator import environment
from run_transcription.errors import Rejected, TranscriptionError

STRANGE = "x/a b+c%20&é\n\"'🎧#?.wav"


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path):
    """Name a place to store things: the same is promised for both kinds."""
    if request.param == "folder":
        return str(tmp_path)
    return f"s3://{request.getfixturevalue('stack').bucket}"


@pytest.mark.parametrize("name", ["a.json", STRANGE])
def test_what_is_stored_is_read_again(root, name):
    """Any name is taken as it is, on S3 and in folders, and the hash is that of the content."""
    address = storage.join(root, name)
    stored = storage.store(address, b"text")
    assert storage.read(address) == b"text"
    assert (stored.address, stored.size) == (address, 4)
    assert stored.sha256 == hashlib.sha256(b"text").hexdigest()
    assert storage.exists(address)
    assert not storage.exists(address + "x")


@pytest.mark.parametrize("extension", [writer.extension for writer in writers.FORMATS.values()])
def test_browsers_show_what_is_stored(stack, extension):
    """On S3 each format has its type: a page without one would be saved, and not shown."""
    storage.store(f"s3://{stack.bucket}/results/a.b/transcript{extension}", b"x")
    kind = aws.s3().head_object(Bucket=stack.bucket, Key=f"results/a.b/transcript{extension}")["ContentType"]
    assert kind == storage.KINDS[f".{extension.rpartition('.')[2]}"]


def test_storing_again_replaces(root):
    """Without a condition the newer content wins, and it is told apart from the older."""
    address = storage.join(root, "a.json")
    storage.store(address, b"first")
    before = storage.version(address)
    storage.store(address, b"the second")
    assert storage.read(address) == b"the second"
    assert storage.version(address) != before


def test_if_absent_keeps_what_is_there(root):
    """A result that somebody has finished is not written again, and that is no error."""
    address = storage.join(root, "a.json")
    storage.store(address, b"first", if_absent=True)
    storage.store(address, b"second", if_absent=True)
    assert storage.read(address) == b"first"


def test_what_was_kept_is_what_is_returned(root):
    """Who names a file by its hash must name the one that lies there, not the one that was not written."""
    address = storage.join(root, "a.txt")
    first = storage.store(address, b"first", if_absent=True)
    assert storage.store(address, b"the second", if_absent=True) == first


def test_nothing_lies_about_after_storing(tmp_path):
    """Only the files asked for are left in a folder: no part, also after a refused one."""
    for _ in range(2):
        storage.store(str(tmp_path / "new" / "a.json"), b"text", if_absent=True)
    storage.store(str(tmp_path / "new" / "a.json"), b"text")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.json"]


def test_stored_files_have_the_users_permissions(tmp_path):
    """A result is as readable as any file that the user makes."""
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    storage.store(str(tmp_path / "a.json"), b"text")
    assert (tmp_path / "a.json").stat().st_mode == plain.stat().st_mode


def test_a_place_that_is_no_folder_is_one_line(tmp_path):
    """What can't be written is named, with the system's own words."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TranscriptionError, match=r"cannot write .*/file/a\.json: (Not a directory|File exists)"):
        storage.store(str(tmp_path / "file" / "a.json"), b"text")


def test_an_absent_output_bucket_is_not_the_recordings_fault(emulator):
    """Failing to write is never a Rejected: the recording would be given up for it."""
    with pytest.raises(TranscriptionError, match="NoSuchBucket") as caught:
        storage.store("s3://no-such-bucket/a.json", b"text")
    assert not isinstance(caught.value, Rejected)


def test_a_bucket_that_is_not_there_is_not_writable(stack):
    """A mistyped bucket is found before anything was transcribed for it; one that may not be looked at is tried."""
    storage.require_writable(f"s3://{stack.bucket}/texts")
    with pytest.raises(TranscriptionError, match="cannot write into s3://no-such-bucket/texts"):
        storage.require_writable("s3://no-such-bucket/texts")
    with Stubber(aws.s3()) as answers:
        answers.add_client_error("head_bucket", "403", http_status_code=403)
        storage.require_writable("s3://someone-elses/texts")


def test_an_endpoint_that_is_no_url_is_one_line(emulator):
    """A mistyped AWS_ENDPOINT_URL is named."""
    with (
        environment(os.environ | {"AWS_ENDPOINT_URL": "nonsense"}),
        pytest.raises(TranscriptionError, match="^cannot reach S3: .*nonsense"),
    ):
        storage.exists("s3://bucket/key")


def test_a_name_that_is_no_utf_8_is_refused_by_s3(stack):
    """Such a name can't be a key."""
    with pytest.raises(TranscriptionError, match="no UTF-8"):
        storage.store(f"s3://{stack.bucket}/\udce9.json", b"text")


def test_who_stops_reading_a_listing_meets_no_error(monkeypatch):
    """Also at the interpreter's end, when the names of AWS's errors can't be imported any more."""
    monkeypatch.setattr(aws, "_errors", lambda: pytest.fail("there is no error to be told"))
    with pytest.raises(GeneratorExit), aws.plainly("list"):
        raise GeneratorExit


def test_a_conflict_is_tried_again(emulator, monkeypatch):
    """409 means that another writer was at it: the next try decides."""
    monkeypatch.setattr(storage, "CONFLICT_PAUSES", (0.0, 0.0))
    with Stubber(aws.s3()) as answers:
        answers.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        answers.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        answers.add_response("put_object", {})
        storage.store("s3://bucket/a.json", b"text", if_absent=True)
        answers.assert_no_pending_responses()


def test_endless_conflicts_are_an_error(emulator, monkeypatch):
    """Where every try meets a conflict nothing was written, so it must not look finished."""
    monkeypatch.setattr(storage, "CONFLICT_PAUSES", (0.0,))
    with Stubber(aws.s3()) as answers:
        for _ in range(2):
            answers.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
        with pytest.raises(TranscriptionError, match="ConditionalRequestConflict"):
            storage.store("s3://bucket/a.json", b"text", if_absent=True)


def test_a_file_uploads_with_progress(stack, tmp_path):
    """All bytes are reported and arrive, also in several parts."""
    content, seen = os.urandom(9_000_000), []
    (tmp_path / "a.wav").write_bytes(content)
    storage.upload(tmp_path / "a.wav", f"s3://{stack.bucket}/a.wav", seen.append)
    assert sum(seen) == len(content)
    assert len(seen) > 1
    assert storage.read(f"s3://{stack.bucket}/a.wav") == content


def test_a_listing_has_objects_and_no_folder_markers(stack):
    """What the console shows as a folder is not taken for a recording."""
    root = f"s3://{stack.bucket}"
    for name in ("in/", "in/b c.wav", "in/sub/", "in/sub/a.wav", "out/c.wav"):
        storage.store(f"{root}/{name}", b"")
    assert list(storage.listing(f"{root}/in/")) == [f"{root}/in/b c.wav", f"{root}/in/sub/a.wav"]


def test_missing_credentials_are_one_line(emulator):
    """What botocore says is passed on in one line, with what was tried."""
    bare = {name: value for name, value in os.environ.items() if "KEY" not in name}
    with environment(bare), pytest.raises(TranscriptionError, match=r"^cannot list s3://bucket/: .*credentials.*$"):
        list(storage.listing("s3://bucket/"))


def test_an_address_without_a_key_is_said_in_our_words(emulator):
    """`s3://nobucket` is a bucket and no recording: botocore's complaint of parameters helps nobody."""
    with pytest.raises(
        TranscriptionError, match=r"^s3://nobucket names a bucket and nothing in it: write s3://nobucket/key$"
    ):
        storage.exists("s3://nobucket")


def test_what_s3_refuses_is_said_in_our_words_and_its_own(emulator):
    """A person reads what is wrong, and finds S3's code too."""
    with pytest.raises(TranscriptionError, match=r"there is no such bucket \(.*NoSuchBucket"):
        list(storage.listing("s3://no-such-bucket/"))


def test_what_is_removed_is_gone_and_what_is_not_there_is_no_error(root):
    """A finished job removes what it had left for a next try, also where somebody else has done so."""
    address = storage.join(root, "work/x")
    storage.store(address, b"rows")
    for _ in range(2):
        storage.remove(address)
    assert not storage.exists(address)


@pytest.mark.parametrize("address", ["s3://", "s3:///key"])
def test_an_address_without_a_bucket_is_refused(address):
    """The mistake is named before anything is asked of S3."""
    with pytest.raises(TranscriptionError, match="names no bucket"):
        storage.split(address)


def test_home_is_chosen_by_variable_then_image_then_cache(monkeypatch, tmp_path):
    """An operator's choice wins, then the image's folder where there is one, then the user's cache."""
    monkeypatch.setattr(storage, "IMAGE_HOME", tmp_path / "image")
    monkeypatch.delenv("TRANSCRIBE_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert storage.home() == tmp_path / "cache" / "transcribe"
    (tmp_path / "image").mkdir()
    assert storage.home() == tmp_path / "image"
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path / "chosen"))
    assert storage.home() == tmp_path / "chosen"
