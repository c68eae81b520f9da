"""vad: the regions are those of silero-vad's own code, however the recording comes in."""

from __future__ import annotations

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from run_transcription import vad
from run_transcription.engines import silero
from run_transcription.engines.silero import Silero
from run_transcription.hearing import Region
from run_transcription.records import SAMPLE_RATE


@pytest.fixture(scope="module")
def speech(scene):
    """Two and a half minutes of conversation, then of speech in noise."""
    return np.concatenate([scene(name, 75.3, 5).samples for name in ("conversation", "10 dB SNR")])


@pytest.fixture(scope="module")
def package():
    """The package's own code, which imports torchaudio for files that it is not given here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
        import silero_vad

        return silero_vad


def heard(samples, cuts=(), detector=None, threshold=0.5):
    """Return the regions of a recording that comes in parts, joined where a block ends."""
    ear = vad.Ear(np.split(samples, cuts), detector or Silero(), threshold)
    found = []
    for block in ear.heard():
        for region in block.speech:
            if found and region.start <= found[-1].end:
                region = Region(found.pop().start, region.end)  # noqa: PLW2901 - it goes on
            found.append(region)
    assert ear.samples == len(samples)
    return found


def test_regions_are_those_of_the_package(package, speech, monkeypatch):
    """Many strips at once give the regions of the single stream within 0.1 s, across the ends of blocks too."""
    monkeypatch.setattr(vad, "BLOCK", 4 * vad.STRIP)
    ours = heard(speech)
    theirs = package.get_speech_timestamps(
        torch.from_numpy(speech),
        package.load_silero_vad(),
        min_speech_duration_ms=100,
        min_silence_duration_ms=100,
        speech_pad_ms=0,
    )
    assert len(ours) == len(theirs) > 20
    for region, other in zip(ours, theirs, strict=True):
        assert abs(region.start - other["start"]) <= 0.1 * SAMPLE_RATE
        assert abs(region.end - other["end"]) <= 0.1 * SAMPLE_RATE


def test_probabilities_are_those_of_the_package(package, speech):
    """Frame by frame the network is the one that the package runs."""
    part = speech[: 10 * vad.FRAME * 30]
    theirs = package.load_silero_vad().audio_forward(torch.from_numpy(part)[None], 16_000)[0]
    np.testing.assert_allclose(Silero()(part[None])[0], theirs.detach().numpy(), atol=1e-4)


def test_regions_do_not_depend_on_the_blocks(speech):
    """A recording that comes in other parts has the same regions."""
    assert heard(speech, [1, 7 * SAMPLE_RATE + 13, 60 * SAMPLE_RATE]) == heard(speech)


def test_a_short_recording_is_not_filled_up():
    """Half a second costs the detector half a second, not a strip of 16."""
    seen = []

    def detector(strips):
        seen.append(strips.shape)
        return np.zeros((len(strips), strips.shape[1] // vad.FRAME), np.float32)

    heard(np.ones(SAMPLE_RATE // 2, np.float32), detector=detector)
    heard(np.ones(40 * SAMPLE_RATE, np.float32), detector=detector)
    assert seen == [(1, 16 * vad.FRAME), (3, vad.STRIP)]


def test_recordings_that_are_heard_at_once_share_a_thread(speech):
    """Each is heard as if it were alone; memory and cores are those of one."""
    parts = np.split(speech[: 8 * vad.STRIP], 4)
    alone = [heard(part) for part in parts]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(heard, parts)) == alone
    assert sum(thread.name.startswith("silero") for thread in threading.enumerate()) == 1


def test_a_quiet_recording_has_no_regions():
    """Nobody speaks in nothing, and nothing is no error."""
    assert heard(np.zeros(0, np.float32)) == []
    assert heard(np.zeros(40 * SAMPLE_RATE, np.float32)) == []
    assert heard(np.zeros(40 * SAMPLE_RATE, np.float32), detector=vad.loud) == []


@given(probabilities=st.lists(st.floats(0, 1), max_size=120), cuts=st.lists(st.integers(0, 120), max_size=4))
def test_regions_are_apart_and_in_order(probabilities, cuts):
    """Whatever the probabilities and however they come: regions follow one another, with pauses between them."""
    regions, found, at = vad.Regions(0.5), [], 0
    for cut in [*sorted(cuts), len(probabilities)]:
        found += regions.feed(probabilities[at:cut])
        at = max(at, cut)
    assert found == vad.Regions(0.5).feed(probabilities)
    assert all(after.start - before.end >= vad.SILENCE - vad.FRAME for before, after in pairwise(found))
    assert all(region.end - region.start > vad.SPEECH for region in found)
    for region in found:
        assert max(probabilities[region.start // vad.FRAME : region.end // vad.FRAME]) >= 0.5


def test_without_silero_speech_is_what_is_loud():
    """Pauses 20 dB below are found; a whole recording of one loudness has none."""
    noise = (0.1 * np.random.default_rng(0).standard_normal(60 * SAMPLE_RATE)).astype(np.float32)
    assert heard(noise, detector=vad.loud) == [Region(0, pytest.approx(len(noise), abs=2 * vad.FRAME))]
    noise[20 * SAMPLE_RATE : 30 * SAMPLE_RATE] *= 0.01
    first, second = heard(noise, detector=vad.loud)
    assert first.end / SAMPLE_RATE == pytest.approx(20, abs=0.2)
    assert second.start / SAMPLE_RATE == pytest.approx(30, abs=0.2)


def test_a_faint_voice_is_loud():
    """Speech 30 dB below other speech is no pause, as the floor lies far below it."""
    random = np.random.default_rng(0)
    samples = (1e-4 * random.standard_normal(60 * SAMPLE_RATE)).astype(np.float32)
    for start, gain in ((5, 0.2), (25, 0.006), (45, 0.2)):
        samples[start * SAMPLE_RATE : (start + 5) * SAMPLE_RATE] += (
            gain * random.standard_normal(5 * SAMPLE_RATE)
        ).astype(np.float32)
    assert [round(region.start / SAMPLE_RATE) for region in heard(samples, detector=vad.loud)] == [5, 25, 45]


def test_a_missing_package_is_said(monkeypatch):
    """Without silero-vad there is one line that says what to do."""
    from run_transcription.engines import silero
    from run_transcription.errors import TranscriptionError

    monkeypatch.setattr(silero, "find_spec", lambda _: None)
    silero._network.cache_clear()
    with pytest.raises(TranscriptionError, match="silero-vad is not installed: install it, or use --no-vad"):
        Silero()


def test_listening_takes_one_core_and_leaves_the_others_alone(monkeypatch):
    """Its steps are too small for two; whoever else calculates, now or later, has as many as before."""
    before = torch.get_num_threads()
    monkeypatch.setattr(silero, "_thread", cache(silero._thread.__wrapped__))
    torch.set_num_threads(2)
    try:
        Silero()(np.zeros((2, 4 * vad.FRAME), np.float32))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
        assert silero._thread().submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)
