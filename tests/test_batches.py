"""batches: rows that fail are decoded again, batches that don't fit are halved, and both are remembered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from letters import Words

from run_transcription import batches, quality
from run_transcription.batches import Decoder, temperatures
from run_transcription.errors import OutOfMemory
from run_transcription.records import Batch, Chunk, Decoding, ModelFacts, Row, Timing

GOOD, BAD = tuple(range(20)), (7,) * 60


class Moody:
    """An engine whose rows are good from a temperature on, which each window states; it has room for some windows."""

    def __init__(self, room=100):
        self.facts, self.tokenizer = ModelFacts("moody", str(room), "cpu", "float32", "sdpa"), Words()
        self.room, self.calls = room, []

    def transcribe(self, windows, decoding):
        self.calls.append((len(windows), decoding.temperature))
        if len(windows) > self.room:
            raise OutOfMemory("no room")
        rows = (self.row(float(window[0]), decoding.temperature) for window in windows)
        return Batch(tuple(rows), Timing(generate=1))

    def row(self, needed, temperature):
        tokens = GOOD if temperature >= needed - 1e-6 else BAD
        return Row(tokens, "en", 1.0, 0.0, -0.2 - temperature, temperature)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    """Let each test begin with nothing remembered."""
    monkeypatch.setattr(batches, "_safe_sizes", {})


def decode(engine, *needed, size=8, finished=None, **options):
    """Decode a window for each temperature that it needs; return the rows."""
    windows = {Chunk(i * 10, i * 10 + 10): np.full(10, value, np.float32) for i, value in enumerate(needed)}
    decoder = Decoder(engine, Decoding(batch_size=size, **options), finished or {})
    rows = decoder.rows(windows)
    assert [*rows] == [*windows]
    return [*rows.values()]


def test_only_rows_that_fail_are_decoded_again():
    """They go together to the next temperature, until they pass."""
    engine = Moody()
    rows = decode(engine, 0, 0.4, 0, 0.2)
    assert engine.calls == [(4, 0.0), (2, 0.2), (1, 0.4)]
    assert [row.tokens for row in rows] == [GOOD] * 4
    assert [(row.temperature, row.attempts) for row in rows] == [(0, 1), (0.4, 3), (0, 1), (0.2, 2)]


def test_the_best_attempt_is_kept():
    """A row that never passes is the attempt that the model is surest of, and all temperatures were tried."""
    engine = Moody()
    (row,) = decode(engine, 9)
    assert [temperature for _, temperature in engine.calls] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert (row.tokens, row.temperature, row.attempts) == (BAD, 0, 6)


def test_the_thresholds_decide():
    """Without a limit to repetition and log-probability nothing is decoded again; without a step only once."""
    for options in ({"compression_ratio_threshold": 99, "logprob_threshold": -9}, {}):
        engine = Moody()
        decode(engine, 9, temperature_increment_on_fallback=0.0, **options)
        assert engine.calls == [(1, 0.0)]
    assert [*temperatures(Decoding(temperature_increment_on_fallback=0.5))] == [0, 0.5, 1.0]


def test_finished_rows_are_not_decoded():
    """An earlier try's rows are taken as they are, also those that failed at every temperature."""
    engine = Moody()
    kept = Row(BAD, "en", 1.0, 0.0, -9.0, attempts=6)
    rows = decode(engine, 9, 0, finished={Chunk(0, 10): kept})
    assert rows[0] is kept
    assert engine.calls == [(1, 0.0)]


def test_a_batch_that_does_not_fit_is_halved():
    """It is done again in halves, what was finished is kept, and the size is remembered for the process."""
    engine = Moody(room=3)
    rows = decode(engine, *[0] * 20, size=16)
    assert [size for size, _ in engine.calls] == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert len(rows) == 20
    engine.calls.clear()
    decode(engine, *[0] * 5, size=16)
    assert [size for size, _ in engine.calls] == [2, 2, 1]


def test_smaller_batches_are_told():
    """How many windows fit is known of each recording since, but for one that asks for no more."""
    engine, asked = Moody(room=3), Decoding(batch_size=8)
    assert Decoder(engine, asked, {}).reduced is None
    decode(engine, *[0] * 8)
    assert Decoder(engine, asked, {}).reduced == 2
    assert Decoder(engine, replace(asked, batch_size=2), {}).reduced is None
    assert Decoder(Moody(room=4), asked, {}).reduced is None


def test_one_window_that_does_not_fit_is_an_error():
    """There is nothing to halve."""
    with pytest.raises(OutOfMemory, match="no room"):
        decode(Moody(room=0), 0)


@pytest.mark.parametrize(
    ("words", "loop"),
    [
        ("thank you " * 4, True),
        ("no no no no no no no no", True),
        ("one two three four five six seven eight " * 4, True),
        ("yes and then we went on " + "to the moon " * 6, True),
        ("no no no no", False),
        ("one two three four five six seven eight " * 2, False),
        ("the birch canoe slid on the smooth planks", False),
        ("", False),
    ],
)
def test_a_loop_is_seen(words, loop):
    """The same words four times in a row, eight words in all, are a loop."""
    assert quality.is_loop(words.split()) is loop


def test_windows_know_the_text_before_them():
    """They are decoded behind it, but not behind what was drawn in great heat; no text spells special tokens."""
    prompts = []

    class Listening(Moody):
        def transcribe(self, windows, decoding):
            prompts.append(decoding.initial_prompt)
            return super().transcribe(windows, decoding)

    decoder = Decoder(Listening(), Decoding(initial_prompt="Names:", language="en"), {})
    for text, temperature in ((" one <<||endoftext|>", 0.0), (" two", 0.8), (" three", 0.2)):
        decoder.rows({Chunk(0, 10): np.zeros(10, np.float32)})
        decoder.go_on_from(text, temperature)
    first, behind_one, behind_two = prompts
    assert (first, behind_one[:10], behind_two) == ("Names:", "Names: one", "")
    assert "<|" not in behind_one
