"""Nothing lost, nothing invented: the demo model on recordings whose words and times are known."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import quality
import scenes

from run_transcription import direct_transcribe
from run_transcription.demo.score import aligned, word_errors, words
from run_transcription.records import SAMPLE_RATE, Decoding

ENGLISH = Decoding(language="en")


def transcribe(samples, engine, decoding=ENGLISH):
    """Return the transcript."""
    return direct_transcribe.transcribe(np.array_split(samples, 7), engine, decoding)[0]


def wrong(speech, found):
    """Count the words of a transcript that are replaced, lost or invented."""
    return word_errors(speech.words, words(found.text))


@pytest.fixture(scope="module")
def most(engine, scene):
    """Say how many words may be wrong in a scene: as many as the same model has wrong by transformers' long form."""

    @functools.cache
    def count(name, seconds):
        speech = scene(name, seconds)
        return wrong(speech, transcribe(speech.samples, engine, replace(ENGLISH, sequential=True)))

    return count


def test_no_word_is_lost_or_doubled_where_nobody_pauses(engine, scene, most):
    """Two minutes without a pause are cut at seams: joining costs no word that one window would have right."""
    speech = scene("no pauses", 120)
    found = transcribe(speech.samples, engine)
    assert len({segment.seek for segment in found.segments}) >= 5
    assert quality.seam_errors(speech, found.text, engine) == 0
    assert wrong(speech, found) <= most("no pauses", 120)
    assert found.quality.coverage >= 0.995


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("name", ["music under speech", "10 dB SNR"])
def test_music_and_noise_cost_no_words(engine, scene, name, listening):
    """Chords and drums, or noise, 10 dB below the speech: 99 % of what is said has text, and it is not just any text.

    One word in ten may be another one: so many the model takes for others in such noise by transformers' long form too.
    """
    speech = scene(name, 60)
    found = transcribe(speech.samples, engine, replace(ENGLISH, vad=listening))
    pairs = aligned(speech.words, words(found.text))
    written = {i for i, j in pairs if j is not None}
    spans = [(segment.start - 0.3, segment.end + 0.3) for segment in found.segments]
    middles = [(word.start + word.end) / 2 for phrase in speech.phrases for word in phrase]
    covered = [i in written and any(start <= middle <= end for start, end in spans) for i, middle in enumerate(middles)]
    assert sum(covered) >= 0.99 * len(middles)
    assert wrong(speech, found) <= 0.1 * len(middles)


def test_long_silences_cost_nothing(engine, scene, most):
    """Turns between long silences are all there, and the silences are not decoded."""
    speech = scene("long gaps", 120)
    seen = []
    decode = engine.transcribe

    class Watching:
        facts, tokenizer, check = engine.facts, engine.tokenizer, staticmethod(engine.check)

        def transcribe(self, windows, decoding):
            seen.extend(len(window) for window in windows)
            return decode(windows, decoding)

    found = transcribe(speech.samples, Watching())
    assert wrong(speech, found) <= most("long gaps", 120)
    assert sum(seen) < 0.6 * len(speech.samples)


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("name", ["silence", "white noise", "tones", "hold music"])
def test_nothing_is_invented(engine, name, listening):
    """Where nobody speaks nothing is written, with and without Silero VAD."""
    silent = next(each for each in scenes.SILENCE if each.name == name).make(None, 60, 1)
    found = transcribe(silent.samples, engine, replace(ENGLISH, vad=listening))
    assert found.text == ""


def test_the_reference_hears_the_same(engine, scene):
    """--sequential goes through a recording by transformers' own algorithm, and comes to the same words.

    It tells how far it is at each window, since a worker takes what tells nothing for hanging; and what it took.
    """
    speech, done = scene("conversation", 70), []
    ours = transcribe(speech.samples, engine)
    sequential = replace(ENGLISH, sequential=True)
    reference, timing = direct_transcribe.transcribe(
        [speech.samples], engine, sequential, lambda advance: done.append(advance.seconds)
    )
    assert 0 < min(timing.features, timing.encode) < timing.generate < timing.wall
    assert len(done) >= 4
    assert done == sorted({*done})
    assert done[-1] == 70
    assert word_errors(ours.text.split(), reference.text.split()) <= 0.03 * len(speech.words)
    assert reference.text != ""
    assert all(0 < segment.confidence <= 1 for segment in reference.segments)
    assert max(segment.end for segment in reference.segments) <= 70
    assert reference.quality.coverage > 0.9


def test_a_transcript_knows_how_sure_it_is(engine, scene):
    """Confidence comes from the tokens: clear speech is surer than speech in much noise, and no two are alike."""
    clear = transcribe(scene("conversation", 30).samples, engine)
    speech = scene("conversation", 30).samples
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    noisy = transcribe(speech + 0.1 * noise, engine, replace(ENGLISH, vad=False))
    assert clear.quality.confidence > noisy.quality.confidence
    assert len({segment.confidence for segment in clear.segments}) > 1


def test_the_same_recording_gives_the_same_transcript(engine, scene):
    """Also where rows fail and are drawn by chance, in other batches, and in a try that takes over half the rows."""
    samples = scene("no pauses", 70).samples[: 65 * SAMPLE_RATE]
    strict = replace(ENGLISH, logprob_threshold=-0.01, batch_size=2)
    advances = []
    first = direct_transcribe.transcribe([samples], engine, strict, advances.append)[0]
    assert first.quality.retried_rows > 0
    assert first.quality.needs_review
    others = direct_transcribe.transcribe([samples], engine, replace(strict, batch_size=8))[0]
    said = [[(each.start, each.end, each.tokens) for each in found.segments] for found in (first, others)]
    assert said[0] == said[1]
    kept = dict(advances[0].rows)
    assert direct_transcribe.transcribe(np.array_split(samples, 5), engine, strict, finished=kept)[0] == first


def test_times_never_go_back(engine, scene):
    """Segments follow one another and end with the recording, at seams too."""
    for name in ("no pauses", "conversation"):
        found = transcribe(scene(name, 60).samples, engine, replace(ENGLISH, chunk_length=12))
        times = [time for segment in found.segments for time in (segment.start, segment.end)]
        assert times == sorted(times)
        assert times[-1] <= found.duration
