"""alignment and warping: when each word was said, and that finding it out leaves the model as it was."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest
import tiny_whisper
import torch

from run_transcription import direct_transcribe
from run_transcription.engines import alignment, assemble, warping
from run_transcription.records import Decoding

ENGLISH = Decoding(language="en")
WORDS = replace(ENGLISH, word_timestamps=True)


def transcribe(samples, engine, decoding=WORDS):
    """Return the transcript."""
    return direct_transcribe.transcribe([samples], engine, decoding)[0]


def textbook(cost):
    """Return where each token begins on the cheapest way, by the two loops that everybody knows."""
    tokens, frames = cost.shape
    total = np.full((tokens + 1, frames + 1), np.inf)
    total[0, 0] = 0
    for i in range(1, tokens + 1):
        for j in range(1, frames + 1):
            total[i, j] = cost[i - 1, j - 1] + min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    return total[1:, 1:]


def test_the_way_is_the_cheapest():
    """For costs of several sizes at once, each row's way costs what the textbook's does, and never goes back."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (5, 40), (17, 60), (3, 3)]
    costs = [rng.random(shape).astype(np.float32) - 0.3 for shape in shapes]
    for cost, begins in zip(costs, warping.starts(costs), strict=True):
        assert begins == sorted(begins)
        assert begins[0] == 0
        assert max(begins) < cost.shape[1]
        best = textbook(cost.astype(np.float64))[-1, -1]
        assert _cheapest_with(cost.astype(np.float64), begins) == pytest.approx(best, abs=1e-4)


def _cheapest_with(cost, begins):
    """Return the least cost of a way on which each token begins at its frame: it may share that with the one before."""
    tokens, frames = cost.shape
    total = np.full((tokens, frames), np.inf)
    for token in range(tokens):
        until = begins[token + 1] if token + 1 < tokens else frames - 1
        for frame in range(begins[token], until + 1):
            before = [total[token, frame - 1]] if frame > begins[token] else []
            if token and frame == begins[token]:
                before += [total[token - 1, frame], total[token - 1, frame - 1] if frame else np.inf]
            total[token, frame] = cost[token, frame] + (min(before) if before else 0.0)
    return total[-1, -1]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_seen_is_the_models_own(tmp_path, attention):
    """The scores of the chosen heads, made even, are the weights that eager attention shows for them."""
    folder = tiny_whisper.make(tmp_path / "tiny")
    eager, model = (assemble.mapped_model(folder, "float32", way).eval() for way in ("eager", attention))
    encoded = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1500, 16)).astype(np.float32))
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode(), alignment.watched(model, {0: [1]}) as seen:
        model.model.decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False)
    with torch.inference_mode():
        out = eager.model.decoder(input_ids=ids, encoder_hidden_states=encoded, output_attentions=True)
    assert torch.allclose(seen[0].softmax(-1), out.cross_attentions[0][:, 1:], atol=1e-5)
    assert not model.model.decoder.layers[0].encoder_attn._forward_pre_hooks
    assert model.config._attn_implementation == attention


def test_heads_are_the_models_or_those_of_the_second_half(tmp_path, engine):
    """As at openai/whisper."""
    assert alignment.heads_of(engine._model) == {1: [0], 2: [0]}
    tiny = assemble.mapped_model(tiny_whisper.make(tmp_path / "tiny"), "float32", "sdpa")
    assert alignment.heads_of(tiny) == {0: [0, 1]}


def test_words_are_found_where_they_were_said(engine, scene):
    """Starts and ends of words are within 0.1 s in the median; the words of a segment are its text."""
    errors = []
    for seed in (100, 101):
        speech = scene("conversation", 60, seed)
        found = transcribe(speech.samples, engine)
        for segment in found.segments:
            assert "".join(word.word for word in segment.words) == segment.text
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times)
            assert all(segment.start <= time <= segment.end for time in times)
        words = [word for segment in found.segments for word in segment.words]
        said = [spoken for phrase in speech.phrases for spoken in phrase]
        assert [word.word.strip() for word in words] == [spoken.word for spoken in said]
        for word, spoken in zip(words, said, strict=True):
            errors += [abs(word.start - spoken.start), abs(word.end - spoken.end)]
        assert all(0 < word.probability <= 1 for word in words)
    assert statistics.median(errors) <= 0.1
    assert statistics.quantiles(errors, n=10)[-1] <= 0.3


def test_word_times_change_no_text(engine, scene):
    """The text with word times is the one without, in the same segments; and so it is afterwards without again."""
    samples = scene("no pauses", 45).samples
    plain, words, again = (transcribe(samples, engine, decoding) for decoding in (ENGLISH, WORDS, ENGLISH))
    assert [segment.tokens for segment in plain.segments] == [segment.tokens for segment in again.segments]
    assert words.text == plain.text
    assert {segment.words for segment in again.segments} == {()}


def test_seams_keep_words_and_text_together(engine, scene):
    """Where segments were cut and joined their words are still those of their text, in order of time."""
    found = transcribe(scene("no pauses", 60).samples, engine, replace(WORDS, chunk_length=12))
    assert all("".join(word.word for word in segment.words) == segment.text for segment in found.segments)
    times = [word.start for segment in found.segments for word in segment.words]
    assert times == sorted(times)


def test_the_long_form_has_words_too(engine, scene):
    """--sequential finds them segment by segment."""
    speech = scene("conversation", 40)
    found = transcribe(speech.samples, engine, replace(WORDS, sequential=True))
    words = [word for segment in found.segments for word in segment.words]
    assert "".join(word.word for word in words) == found.text
    said = [spoken for phrase in speech.phrases for spoken in phrase]
    if len(said) == len(words):
        errors = [abs(word.start - spoken.start) for word, spoken in zip(words, said, strict=True)]
        assert statistics.median(errors) <= 0.15
