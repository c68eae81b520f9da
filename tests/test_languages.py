"""languages: which language a recording is in, by its first windows, and which windows are decoded in their own."""

from __future__ import annotations

import numpy as np
import pytest
from letters import Words

from run_transcription import direct_transcribe, languages
from run_transcription.audio import open_recording
from run_transcription.batches import Decoder
from run_transcription.demo.command import RECORDINGS
from run_transcription.demo.score import word_errors
from run_transcription.errors import Rejected
from run_transcription.records import SAMPLE_RATE, Batch, Chunk, Decoding, ModelFacts, Row, Timing


def heard(name):
    """Return the samples of one of the demo's recordings."""
    with open_recording(RECORDINGS / name) as reader:
        return np.concatenate([*reader.blocks()])


class Polyglot:
    """An engine whose windows say in which language they are, and how likely: German is negative."""

    def __init__(self):
        self.facts, self.tokenizer = ModelFacts("polyglot", "0", "cpu", "float32", "sdpa"), Words()
        self.calls = []

    def transcribe(self, windows, decoding):
        self.calls.append((len(windows), decoding.language))
        rows = []
        for window in windows:
            likely = abs(float(window[0]))
            own = "de" if window[0] < 0 else "en"
            language, probability = (decoding.language, 1.0) if decoding.language else (own, likely)
            rows.append(Row((1, 2), language, probability, 0.0, -0.1))
        return Batch(tuple(rows), Timing())


def decoded(*likely, **options):
    """Return the languages in which windows were decoded, and the engine."""
    engine = Polyglot()
    decoder = Decoder(engine, Decoding(**options), {})
    windows = {Chunk(i * 10, i * 10 + 10): np.full(10, value, np.float32) for i, value in enumerate(likely)}
    return [row.language for row in decoder.rows(windows).values()], engine


def test_the_vote_is_weighted_and_ends_after_ten():
    """Two sure windows outweigh three unsure ones, and what comes behind the tenth doesn't count."""
    rows = [Row((), "en", 0.9, 0.0, 0.0)] * 2 + [Row((), "de", 0.4, 0.0, 0.0)] * 3
    assert languages.vote(rows) == ("en", pytest.approx(1.8 / 5))
    assert languages.vote([rows[0]] * 10 + [rows[2]] * 50) == ("en", pytest.approx(0.9))
    assert languages.vote([]) == (None, 0.0)


def test_a_window_in_doubt_is_decoded_in_the_recordings_language():
    """One whose own language is likely keeps it; the others are decoded anew, and only those."""
    found, engine = decoded(0.9, 0.8, -0.3, -0.9, 0.4)
    assert found == ["en", "en", "en", "de", "en"]
    assert engine.calls == [(5, None), (1, "en")]
    assert decoded(0.9, 0.8, -0.3, language_detection_threshold=0.2)[0] == ["en", "en", "de"]


def test_the_first_window_does_not_decide():
    """Music before the first word may sound like any language: the other windows outvote it."""
    assert decoded(-0.4, 0.9, 0.9)[0] == ["en", "en", "en"]


def test_a_recording_that_changes_its_language(engine):
    """Each part is decoded in its own language, and its segments say so."""
    samples = heard("two-languages.ogg")
    found, _ = direct_transcribe.transcribe([samples], engine, Decoding())
    assert [*dict.fromkeys(segment.language for segment in found.segments)] == ["en", "de"]
    said = (RECORDINGS / "two-languages.txt").read_text(encoding="utf-8").split()
    assert word_errors(said, found.text.split()) <= 0.05 * len(said)


def test_a_window_over_a_change_is_cut_again(engine):
    """Where English becomes German in the middle of a window, shorter ones are decoded each in its own language."""
    english, german = heard("call-signs.mp3"), heard("ziffern.m4a")
    found, _ = direct_transcribe.transcribe([np.concatenate([english, english, *[german] * 3])], engine, Decoding())
    said = [(RECORDINGS / f"{name}.txt").read_text(encoding="utf-8").split() for name in ("call-signs", "ziffern")]
    wanted = said[0] * 2 + said[1] * 3
    assert word_errors(wanted, found.text.split()) <= 0.02 * len(wanted)
    change = 2 * len(english) / SAMPLE_RATE
    wrong = [each for each in found.segments if (each.language == "de") != (each.start + each.end > 2 * change)]
    assert len(wrong) <= 1


def test_shorter_chunks_part_two_languages_in_one_window(engine):
    """A recording of a single window is in one language; with shorter ones each part is in its own."""
    samples = np.concatenate([heard(name)[: 8 * SAMPLE_RATE] for name in ("call-signs.mp3", "ziffern.m4a")])
    for seconds, languages_ in ((30, ["en"]), (10, ["en", "de"])):
        found, _ = direct_transcribe.transcribe([samples], engine, Decoding(chunk_length=seconds))
        assert [*dict.fromkeys(segment.language for segment in found.segments)] == languages_


def test_changes_are_found_across_silence():
    """A window without speech has no language, and parts nothing."""
    assert languages.at_changes(["en", "en", None, "de", "de", None]) == {1, 3}
    assert languages.at_changes([None, "en", None, "en"]) == set()


@pytest.mark.parametrize(("name", "language"), [("ziffern.m4a", "de"), ("call-signs.mp3", "en")])
def test_both_languages_of_the_demo_are_known(engine, name, language):
    """Without a language the recording's own is found, and it is sure."""
    found, _ = direct_transcribe.transcribe([heard(name)], engine, Decoding(languages=("english", "de")))
    assert (found.language, found.language_probability > 0.9) == (language, True)
    assert "language_in_doubt" not in found.quality.reasons


def test_only_the_languages_named_are_detected(engine):
    """German speech is decoded as English where nothing else is allowed; a language beside them is refused."""
    samples = heard("ziffern.m4a")[: 8 * SAMPLE_RATE]
    found, _ = direct_transcribe.transcribe([samples], engine, Decoding(languages=("en",)))
    assert {segment.language for segment in found.segments} == {"en"}
    assert engine.check(Decoding(languages=("German", "en"))).languages == ("de", "en")
    for wrong in (Decoding(languages=("klingon",)), Decoding(language="de", languages=("en",))):
        with pytest.raises(Rejected, match="klingon|--language de is none of them"):
            engine.check(wrong)


def test_a_language_that_is_in_doubt_is_said(engine):
    """Below the threshold the json says that a person should look."""
    samples = heard("ziffern.m4a")[: 8 * SAMPLE_RATE]
    strict = Decoding(language_detection_threshold=1.0)
    found, _ = direct_transcribe.transcribe([samples], engine, strict)
    assert "language_in_doubt" in found.quality.reasons
    sure, _ = direct_transcribe.transcribe([samples], engine, Decoding(language="de"))
    assert "language_in_doubt" not in sure.quality.reasons
