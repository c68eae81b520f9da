"""channels: each by itself, the same ones once, and one transcript in order of time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile

from run_transcription import audio, channels, direct_transcribe, fast_transcribe, optimized_loader
from run_transcription.audit import Quality
from run_transcription.demo.command import RECORDINGS
from run_transcription.demo.score import word_errors
from run_transcription.records import SAMPLE_RATE, Decoding, Job, ModelSpec, Transcript
from run_transcription.samples import clipped, separate

SPLIT = Decoding(channels="split", language="en")


@pytest.fixture(scope="module")
def handle():
    """The demo model in float32 on a CPU."""
    return optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def speech():
    """Two stretches of speech, 12 s each."""
    with audio.open_recording(RECORDINGS / "call-signs.mp3") as reader:
        samples = np.concatenate([*reader.blocks()])
    return samples[: 12 * SAMPLE_RATE], samples[12 * SAMPLE_RATE : 24 * SAMPLE_RATE]


def recording(path, *lines, rate=SAMPLE_RATE):
    """Write a recording with a channel for each line of samples."""
    longest = max(map(len, lines))
    soundfile.write(path, np.stack([np.pad(line, (0, longest - len(line))) for line in lines], axis=1), rate)
    return path


def transcribed(path, handle, decoding=SPLIT):
    """Return the result of a local file."""
    return fast_transcribe.transcribe_file(path, Job(str(path), "-"), handle, decoding)


def test_each_channel_is_transcribed_by_itself(tmp_path, handle, speech):
    """Two speakers at the same time lose no word, and segments say whose they are, in order of time."""
    one, other = speech
    result = transcribed(recording(tmp_path / "call.wav", one, other), handle)
    alone = [transcribed(recording(tmp_path / f"{i}.wav", line), handle).transcript for i, line in enumerate(speech)]
    segments = result.transcript.segments
    for number, single in enumerate(alone, start=1):
        text = "".join(segment.text for segment in segments if segment.channel == number)
        assert text.split() == single.text.split()
    assert {segment.channel for segment in segments} == {1, 2}
    assert [segment.start for segment in segments] == sorted(segment.start for segment in segments)
    assert result.audio.mix == "split"
    assert result.transcript.quality.coverage > 0.99
    mixed = transcribed(tmp_path / "call.wav", handle, replace(SPLIT, channels="mix")).transcript
    assert {segment.channel for segment in mixed.segments} == {None}
    said = "".join(single.text for single in alone).split()
    assert word_errors(sorted(said), sorted(result.transcript.text.split())) == 0


def test_channels_that_are_the_same_are_done_once(tmp_path, handle, speech):
    """A mono recording in two channels, one of them a little louder in its last bits, has each word once."""
    one, _ = speech
    noise = np.random.default_rng(0).standard_normal(len(one)).astype(np.float32)
    path = recording(tmp_path / "twice.wav", one, one + 1e-5 * noise)
    assert channels.distinct(path) == (0,)
    result = transcribed(path, handle)
    alone = transcribed(recording(tmp_path / "once.wav", one), handle, replace(SPLIT, channels="mix"))
    assert result.transcript.text.split() == alone.transcript.text.split()
    assert {segment.channel for segment in result.transcript.segments} == {1}


def test_a_channel_that_differs_is_found(tmp_path, speech):
    """The third of four channels is the first one, at opposite phase it is not; silence is one of its own."""
    one, other = (line[: 3 * SAMPLE_RATE] for line in speech)
    assert channels.distinct(recording(tmp_path / "a.wav", one, other, one, 0 * one)) == (0, 1, 3)
    assert channels.distinct(recording(tmp_path / "b.wav", one, -one)) == (0, 1)
    assert channels.distinct(recording(tmp_path / "c.wav", 0 * one, 0 * one)) == (0,)


def test_a_channel_comes_out_as_it_went_in(tmp_path):
    """Kept channels have the samples of the file, also at another rate and in long blocks."""
    time = np.arange(5 * SAMPLE_RATE) / SAMPLE_RATE
    lines = [(0.5 * np.sin(2 * np.pi * pitch * time)).astype(np.float32) for pitch in (200, 300, 500)]
    path = recording(tmp_path / "a.wav", *lines)
    with audio.open_recording(path, (2, 0)) as reader:
        found = np.concatenate([*reader.blocks()], axis=1)
    assert found.shape == (2, len(time))
    assert np.abs(found - np.stack([lines[2], lines[0]])).max() < 1e-3
    with audio.open_recording(recording(tmp_path / "b.wav", *lines, rate=48_000), (1,)) as reader:
        assert np.concatenate([*reader.blocks()], axis=1).shape == (1, -(-len(time) // 3))


def test_finished_chunks_of_each_channel_are_not_decoded_again(handle, speech):
    """Rows that an earlier try saved are its channel's own."""
    both, advances = np.stack(speech), []
    options = replace(SPLIT, chunk_length=6, batch_size=1)
    first, _ = direct_transcribe.transcribe([both], handle.engine, options, advances.append, kept=(0, 1))
    rows = {chunk: row for advance in advances for chunk, row in advance.rows}
    assert {chunk.channel for chunk in rows} == {1, 2}

    class Deaf:
        facts, tokenizer, check = handle.engine.facts, handle.engine.tokenizer, staticmethod(handle.engine.check)

    again, _ = direct_transcribe.transcribe([both], Deaf(), options, finished=rows, kept=(0, 1))
    assert again == first
    seconds = [advance.seconds for advance in advances]
    assert seconds == sorted(seconds)


def test_the_smallest_batch_of_all_channels_is_told():
    """Where memory ran out on the way, the audit says what all channels were decoded in."""
    sizes = {(None, 4, 2): 2, (None, None): None}
    silent = Transcript(None, 0.0, "transcribe", 1.0, ())
    for each, smallest in sizes.items():
        parts = [replace(silent, quality=Quality(reduced_batch_size=size)) for size in each]
        assert channels.together(parts, range(len(each)), [1] * len(each)).quality.reduced_batch_size == smallest


def test_a_stream_may_lose_a_channel_on_the_way():
    """A channel that is not there for a while is silent; silence of one channel stands for all."""
    two = np.ones((2, 3), np.float32)
    assert separate(two, (1, 5)).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert separate(two[:1], (0, 5)).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_samples_outside_of_clips_are_silence():
    """Whatever the blocks are: start, end, start, and from the last start on all of it."""
    whole = np.arange(1, 10 * SAMPLE_RATE + 1, dtype=np.float32)
    for size in (SAMPLE_RATE // 3, 4 * SAMPLE_RATE, len(whole)):
        parts = [whole[start : start + size] for start in range(0, len(whole), size)]
        found = np.concatenate([*clipped(parts, (1, 2.5, 7))])
        kept = np.zeros(len(whole), bool)
        kept[SAMPLE_RATE : round(2.5 * SAMPLE_RATE)] = kept[7 * SAMPLE_RATE :] = True
        assert np.array_equal(found, np.where(kept, whole, 0))
        assert np.array_equal(np.concatenate([*clipped(parts, ())]), whole)


def test_only_clips_are_transcribed(handle, speech):
    """What lies outside has no text, and is not missed."""
    one, _ = speech
    found, _ = direct_transcribe.transcribe([one], handle.engine, Decoding(language="en", clip_timestamps=(3, 6, 9)))
    assert found.segments
    assert all(each.start >= 3 - 0.1 and (each.end <= 6.1 or each.start >= 8.9) for each in found.segments)
    assert found.quality.coverage > 0.95
    assert found.duration == pytest.approx(12)
