"""Tests of run_transcription.direct_transcribe: chunks, batches and recording time."""

import itertools
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_whisper

from run_transcription import direct_transcribe, optimized_loader, vad
from run_transcription.errors import Rejected
from run_transcription.records import Batch, Decoding, ModelFacts, ModelSpec, Row, Timing

SECOND = 16_000
BEGIN = 2000
LOUD = Decoding(vad=False)  # a click is no speech


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    """Listen to 64 s at a time."""
    monkeypatch.setattr(vad, "BLOCK", 4 * vad.STRIP)


class Clicks:
    """An engine that hears clicks: it writes for each its height and the time at which it stands.

    A click of height 0.1 … 0.9 is the id 1 … 9; negative ones are German. What it hears, it hears by itself:
    neither chunk nor recording time is told to it.
    """

    def __init__(self, no_speech=0.0, logprob=-0.1):
        self.facts = ModelFacts("clicks", "0", "cpu", "float32", "sdpa")
        self.tokenizer = self
        self.timestamp_begin, self.end_of_text = BEGIN, 1000
        self.batches, self.no_speech, self.logprob = [], no_speech, logprob

    def decode(self, tokens):
        return "".join(f" {token}" for token in tokens if token < 1000)

    def check(self, decoding):
        if decoding.language == "klingon":
            code = "unsupported_option"
            raise Rejected(code, "no klingon")
        return replace(decoding, language={"German": "de"}.get(decoding.language, decoding.language))

    def transcribe(self, windows, decoding):
        self.batches.append([len(window) for window in windows])
        return Batch(tuple(self.row(window) for window in windows), Timing(features=1, encode=2, generate=3, wall=6))

    def row(self, window):
        tokens, heard = [], np.flatnonzero(np.abs(window) > 0.05)
        for place in heard:
            start = BEGIN + int(place) // 320
            tokens += [start, round(10 * abs(float(window[place]))), start + 1]
        language = "de" if len(heard) and window[heard[0]] < 0 else "en"
        return Row(tuple(tokens), language, 0.8, self.no_speech, self.logprob)


def recording(seconds, clicks):
    """Make a quiet recording with clicks (height by second)."""
    samples = np.zeros(int(seconds * SECOND), np.float32)
    for second, height in clicks.items():
        samples[int(second * SECOND)] = height
    return samples


def blocks(samples, size=7 * SECOND + 13):
    """Cut samples into blocks, as reading a file gives them."""
    return (samples[start : start + size] for start in range(0, len(samples), size))


def test_all_of_a_long_recording_is_transcribed():
    """Not only the first 30 s: everything up to the last second comes out, once, in order and at its own time."""
    times = [0.5, 29.5, 31, 62.25, 100, 119.5, 180, 247]
    clicks = {time: (1 + i) / 10 for i, time in enumerate(times)}
    transcript, _ = direct_transcribe.transcribe(blocks(recording(250, clicks)), Clicks(), replace(LOUD, batch_size=3))
    assert transcript.text == " 1 2 3 4 5 6 7 8"
    assert [segment.start for segment in transcript.segments] == pytest.approx(times, abs=0.02)
    assert transcript.duration == 250
    assert (transcript.language, transcript.task) == ("en", "transcribe")


def ticking(seconds):
    """Make a recording that clicks once a second, with heights in turn."""
    return recording(seconds, {second + 0.5: 0.1 * (1 + second % 9) for second in range(seconds)})


def test_chunks_are_decoded_in_batches():
    """As many chunks as --batch-size says go into one engine call, the last batch being what is left."""
    engine = Clicks()
    transcript, _ = direct_transcribe.transcribe(
        blocks(ticking(100)), engine, replace(LOUD, batch_size=4, chunk_length=10)
    )
    counts = [len(batch) for batch in engine.batches]
    assert counts[:-1] == [4] * (len(counts) - 1)
    assert 0 < counts[-1] <= 4
    assert max(map(max, engine.batches)) <= 10 * SECOND
    assert transcript.text.split() == [str(1 + second % 9) for second in range(100)]


def test_silence_is_not_decoded():
    """Of a recording that is silent but for two clicks, only what is around these is decoded."""
    engine = Clicks()
    direct_transcribe.transcribe(blocks(recording(300, {10: 0.1, 200: 0.2})), engine, LOUD)
    assert sum(map(sum, engine.batches)) < 3 * SECOND


def test_progress_is_told_after_each_batch():
    """Progress counts seconds of the recording that are done, and ends at its end."""
    advances = []
    direct_transcribe.transcribe(blocks(ticking(100)), Clicks(), replace(LOUD, batch_size=2), advances.append)
    told = [advance.seconds for advance in advances]
    assert len(told) > 1
    assert told == sorted(told)
    assert told[-1] == 100


def test_finished_chunks_are_not_decoded_again():
    """With the rows of an earlier try the transcript is the same, and only the chunks that lack a row are decoded."""
    samples, advances, options = ticking(130), [], replace(LOUD, batch_size=2, language="en")
    whole, _ = direct_transcribe.transcribe(blocks(samples), Clicks(), options, advances.append)
    engine, first = Clicks(), dict(advances[0].rows)
    again, _ = direct_transcribe.transcribe(blocks(samples), engine, options, finished=first)
    assert again == whole
    assert sum(map(len, engine.batches)) == sum(len(advance.rows) for advance in advances[1:])


def test_blocks_are_read_as_they_are_needed():
    """The first batch is decoded before the recording has been read to its end."""
    engine = Clicks()
    seen = []

    def stream():
        for _ in range(40):
            seen.append(len(engine.batches))
            yield ticking(10)

    direct_transcribe.transcribe(stream(), engine, replace(LOUD, batch_size=2, language="en"))
    assert seen[0] == 0
    assert seen[16] >= 1
    assert seen[-1] >= 5


def test_memory_does_not_grow_with_the_recording():
    """Ten minutes need no more memory than three: no more than a block and a batch are held."""

    def peak(minutes):
        tracemalloc.start()
        stream = (ticking(10) for _ in range(6 * minutes))
        direct_transcribe.transcribe(stream, Clicks(), replace(LOUD, batch_size=2, language="en"))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(10) < 1.2 * peak(3)


def test_the_language_is_that_of_most_speech():
    """Chunks without speech don't vote; each segment keeps its own language."""
    clicks = {5: 0.1, 35: -0.2, 65: -0.3}  # English, German, German, then two minutes of nothing that say English
    transcript, _ = direct_transcribe.transcribe(blocks(recording(200, clicks)), Clicks(), LOUD)
    assert transcript.language == "de"
    assert transcript.language_probability == pytest.approx(2 * 0.8 / 3)
    assert [segment.language for segment in transcript.segments] == ["en", "de", "de"]


def test_ten_windows_are_heard_before_any_is_final():
    """With one window at a time, too, the first one is held against the nine that follow; progress is told of each."""
    told, engine = [], Clicks()
    options = replace(LOUD, batch_size=1, chunk_length=5)
    transcript, _ = direct_transcribe.transcribe(blocks(ticking(100)), engine, options, told.append)
    voting = [advance.seconds for advance in itertools.takewhile(lambda advance: not advance.rows, told)]
    assert voting == sorted({*voting})
    assert len(voting) == len(told[len(voting)].rows) == 10
    assert len(engine.batches) == sum(len(advance.rows) for advance in told)
    assert transcript.text.split() == [str(1 + second % 9) for second in range(100)]


@pytest.mark.parametrize(("no_speech", "logprob", "text"), [(0.9, -1.5, ""), (0.9, -0.2, " 1"), (0.1, -1.5, " 1")])
def test_hallucinations_on_silence_are_dropped(no_speech, logprob, text):
    """Text is dropped where the model hears no speech and is unsure of it; one sign alone drops nothing."""
    engine = Clicks(no_speech, logprob)
    transcript, _ = direct_transcribe.transcribe(blocks(recording(3, {1: 0.1})), engine, LOUD)
    assert transcript.text == text
    assert transcript.language == ("en" if text else None)


def test_text_that_breaks_off_is_said(caplog):
    """A chunk whose text is longer than the model can write is counted, and its time is in the log.

    One that is silence is not: nothing of it would be kept.
    """

    class Breathless(Clicks):
        def row(self, window):
            return replace(super().row(window), complete=len(window) < 20 * SECOND)

    transcript, _ = direct_transcribe.transcribe(blocks(ticking(70)), Breathless(), LOUD)
    assert transcript.truncated_chunks == 2
    spans = [re.findall(r"[\d.]+(?= s)", record.getMessage()) for record in caplog.records]
    assert float(spans[0][0]) < 0.5
    assert spans[0][1] == spans[1][0]
    assert 20 < float(spans[0][1]) <= 30
    assert transcript.quality.needs_review
    assert "truncated" in transcript.quality.reasons
    unsure = Breathless(no_speech=0.9, logprob=-1.5)
    assert direct_transcribe.transcribe(blocks(ticking(70)), unsure, LOUD)[0].truncated_chunks == 0
    assert direct_transcribe.transcribe(blocks(ticking(70)), Clicks(), LOUD)[0].truncated_chunks == 0


@pytest.mark.parametrize("seconds", [0, 60])
def test_silence_is_no_error(seconds):
    """No samples or no speech: an empty transcript of that duration, in no language or in the one given, as a code."""
    for language, code in ((None, None), ("de", "de"), ("German", "de")):
        transcript, _ = direct_transcribe.transcribe(
            blocks(recording(seconds, {})), Clicks(), replace(LOUD, language=language)
        )
        assert (transcript.text, transcript.segments, transcript.duration) == ("", (), seconds)
        assert (transcript.language, transcript.language_probability) == (code, 0.0)


def test_stages_are_added_up():
    """The seconds of all batches are added by stage; `wall` is measured here."""
    engine = Clicks()
    _, timing = direct_transcribe.transcribe(blocks(ticking(100)), engine, replace(LOUD, batch_size=2))
    calls = len(engine.batches)
    assert (timing.features, timing.encode, timing.generate) == (calls, 2 * calls, 3 * calls)
    assert 0 < timing.wall < 60


def test_what_the_model_cannot_do_is_said_before_anything_is_read():
    """An unsupported option costs no decoding."""

    def stream():
        pytest.fail("the recording was read")
        yield

    with pytest.raises(Rejected, match="no klingon"):
        direct_transcribe.transcribe(stream(), Clicks(), Decoding(language="klingon"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a checkpoint with random weights."""
    return tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny")


def test_a_real_engine_in_batches_and_alone(folder, tmp_path):
    """A recording gives the same segments whatever the batch size: rows don't touch one another."""
    engine = optimized_loader.load(ModelSpec(str(folder), device="cpu", dtype="float32", home=tmp_path)).engine
    noise = (np.random.default_rng(0).standard_normal(70 * SECOND) * 0.1).astype(np.float32)
    one, three = (
        direct_transcribe.transcribe(blocks(noise), engine, replace(LOUD, batch_size=size))[0] for size in (1, 3)
    )
    assert one.text == three.text != ""
    assert [segment.tokens for segment in one.segments] == [segment.tokens for segment in three.segments]
    assert max(segment.end for segment in one.segments) > 60


def test_the_script_prints_the_text(folder, tmp_path):
    """`python …/direct_transcribe.py audio.wav` works from any folder; the text alone is on standard output."""
    noise = (np.random.default_rng(0).standard_normal(2 * SECOND) * 0.1).astype(np.float32)
    soundfile.write(tmp_path / "audio.wav", noise, SECOND)
    script = Path(direct_transcribe.__file__)
    environment = {"PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1", "TRANSCRIBE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, script, "audio.wav", "--model", folder, "--dtype", "float32", "--no-vad"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    handle = optimized_loader.load(ModelSpec(str(folder), device="cpu", dtype="float32", home=tmp_path))
    pcm, _ = soundfile.read(tmp_path / "audio.wav", dtype="float32")
    expected, _ = direct_transcribe.transcribe([pcm], handle.engine, LOUD)
    assert done.stdout.strip() == expected.text.strip()
    assert "loaded by mmap" in done.stderr
