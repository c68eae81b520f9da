from __future__ import annotations

import hashlib
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_whisper
from fakes import document, tone
from letters import segment

from run_transcription import fast_transcribe, optimized_loader, storage
from run_transcription.audit import Quality
from run_transcription.errors import DoneBefore
from run_transcription.records import Decoding, Job, ModelSpec, Result, Timing, Transcript


@pytest.fixture(scope="module")
def handle(tmp_path_factory):
    folder = tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny")
    home = tmp_path_factory.mktemp("home")
    return optimized_loader.load(ModelSpec(str(folder), device="cpu", dtype="float32", home=home))


@pytest.fixture
def recording(tmp_path):
    return tone(tmp_path / "a tone.wav", seconds=35)


def test_every_format_is_stored_and_named_in_the_json(handle, recording, tmp_path):
    """The json names each other file with the sha256 and the size that it has on disk."""
    result = fast_transcribe.process(
        Job(str(recording), str(tmp_path / "out/x")), handle, Decoding(vad=False), ("json", "srt", "txt")
    )
    said = document((tmp_path / "out/x.json").read_bytes())
    assert result.status == said["status"] == "COMPLETED"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.json", "x.srt", "x.txt"]
    assert set(said["files"]) == {"srt", "txt"}
    assert_files_are_as_said(said)


def assert_files_are_as_said(said):
    """Check each file that a json names."""
    for stored in said["files"].values():
        content = storage.read(stored["address"])
        assert stored["sha256"] == hashlib.sha256(content).hexdigest()
        assert stored["size"] == len(content)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_two_workers_with_one_job_leave_one_result(handle, recording, tmp_path, request, place):
    """Whoever is first with a file, the json names the files that lie there: also when both heard something else."""
    root = str(tmp_path) if place == "folder" else f"s3://{request.getfixturevalue('stack').bucket}"
    job = Job(str(recording), storage.join(root, "x"), identity="0123456789abcdef")
    first = fast_transcribe.transcribe_file(recording, job, handle, Decoding(vad=False))
    segment = replace(first.transcript.segments[0], text=" something else")
    second = replace(first, transcript=replace(first.transcript, segments=(segment,)))
    fast_transcribe.store(first, recording, ("txt",), 0.0)  # and here the first worker dies, or is slow
    fast_transcribe.store(second, recording, ("json", "txt", "srt"), 0.0)
    with pytest.raises(DoneBefore, match="by another worker"):
        fast_transcribe.store(first, recording, ("json", "txt", "srt"), 0.0)
    said = document(storage.read(f"{job.results}.json"))
    assert set(said["files"]) == {"srt", "txt"}
    assert_files_are_as_said(said)


def test_the_json_is_stored_last(handle, recording, tmp_path, monkeypatch):
    """Whatever the order of formats, the json comes after all others: where it is, all is there."""
    order = []
    store = fast_transcribe.storage.store

    def watched(address, data, **options):
        order.append(Path(address).suffix)
        return store(address, data, **options)

    monkeypatch.setattr(fast_transcribe.storage, "store", watched)
    fast_transcribe.process(
        Job(str(recording), str(tmp_path / "x")), handle, Decoding(vad=False), ("json", "vtt", "txt")
    )
    assert order == [".vtt", ".txt", ".json"]


def test_the_whole_recording_is_transcribed(handle, recording, tmp_path):
    """A recording longer than one window is covered to its end, and progress says so."""
    seen = []
    result = fast_transcribe.process(
        Job(str(recording), str(tmp_path / "x")),
        handle,
        Decoding(batch_size=1, vad=False, language="en"),
        ("json",),
        lambda done, of: seen.append((done, of)),
    )
    assert result.transcript.duration == pytest.approx(35.0)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [round(done) for done, _ in seen] == [30, 35, 35]  # two chunks, and the end
    assert seen[-1] == (pytest.approx(35.0), pytest.approx(35.0))


def test_doubts_are_said_without_the_json(handle):
    """Whoever only reads the text is told that a person should look at it, and why."""
    said = Transcript("en", 1.0, "transcribe", 9.0, (segment(0, 1, 7),), quality=Quality(0.5))
    doubtful = replace(said, quality=Quality(0.5, needs_review=True, reasons=("speech_without_text", "logprob")))
    lines = []
    for transcript in (said, doubtful):
        facts, load = handle.engine.facts, handle.load
        done = Result("COMPLETED", Job("a", "b"), Decoding(), facts, load, transcript, timing=Timing(wall=1.0))
        lines.append(fast_transcribe._summary(done))
    assert lines[1] == f"{lines[0]}; a person should look: speech without text, logprob"


def test_timing_holds_every_stage(handle, recording, tmp_path):
    """Decoding, features, encoder, generation and storing all took time, and the wall is at least their sum."""
    timing = fast_transcribe.process(
        Job(str(recording), str(tmp_path / "x")), handle, Decoding(vad=False), ("txt", "json")
    ).timing
    stages = (timing.decode, timing.features, timing.encode, timing.generate, timing.upload)
    assert all(seconds > 0 for seconds in stages)
    assert timing.wall >= sum(stages) * 0.99


def test_rejected_recording_leaves_a_failed_result(handle, tmp_path):
    """A recording that holds no sound is stored as FAILED with its reason code, and nothing else is stored."""
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no sound")
    job = Job(str(bad), str(tmp_path / "out/x"), failed=str(tmp_path / "failed/x.json"))
    result = fast_transcribe.process(job, handle, Decoding(vad=False), ("json", "txt"))
    said = document((tmp_path / "failed/x.json").read_bytes())
    assert result.status == said["status"] == "FAILED"
    assert said["error"]["code"] == result.error.code == "not_audio"
    assert not (tmp_path / "out").exists()


def test_rejected_recording_is_only_returned_where_no_place_is_named(handle, tmp_path):
    """Without an address for failures the FAILED result is returned and no file is written."""
    before = set(tmp_path.rglob("*"))
    result = fast_transcribe.process(
        Job(str(tmp_path / "none.wav"), str(tmp_path / "x")), handle, Decoding(vad=False), ("json",)
    )
    assert result.error.code == "not_found"
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("identity", "kept"), [("0123456789abcdef", True), (None, False)])
def test_only_a_job_with_an_identity_keeps_the_json_that_is_there(handle, recording, tmp_path, identity, kept):
    """The same work, finished before, stays as it is; a person's second run replaces the first one's result."""
    (tmp_path / "x.json").write_text("finished before")
    job = Job(str(recording), str(tmp_path / "x"), identity=identity)
    with pytest.raises(DoneBefore) if kept else nullcontext():
        fast_transcribe.process(job, handle, Decoding(vad=False), ("json",))
    assert ((tmp_path / "x.json").read_text() == "finished before") is kept
