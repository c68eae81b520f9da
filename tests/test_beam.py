"""Beam search, candidates and prompts: against the long way round, and against transformers and CTranslate2."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny_whisper
import torch
from test_torch_engine import engine_of

from run_transcription.engines import beam, rows
from run_transcription.engines.encoder import encode
from run_transcription.errors import Rejected
from run_transcription.records import Decoding

ENGLISH = Decoding(language="en")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Load a multilingual checkpoint with random weights."""
    return engine_of(tiny_whisper.make(tmp_path_factory.mktemp("beam") / "tiny"))


@pytest.fixture(scope="module")
def windows():
    """Make three windows of noise."""
    rng = np.random.default_rng(3)
    return [(rng.standard_normal(length) * 0.3).astype(np.float32) for length in (16_000, 90_000, 300_000)]


class Chain:
    """A model of three tokens and an end, whose next token depends on the last one only."""

    def __init__(self, table, end):
        self.table, self.end, self.steps = torch.tensor(table), end, 0
        self.config = type("Config", (), {"max_target_positions": 6})()

    def __call__(self, *, encoder_outputs, decoder_input_ids, past_key_values, use_cache):
        self.steps += 1
        return type("Out", (), {"logits": self.table[decoder_input_ids].log()})()


class Nothing:
    """A cache that a chain has no use for."""

    def __init__(self, *_):
        self.self_attention_cache = self

    def reorder_cache(self, _):
        """Forget nothing."""


class Encoded:
    def __init__(self, last_hidden_state):
        self.last_hidden_state = last_hidden_state


TABLE = [[0.0, 0.5, 0.4, 0.1], [0.1, 0.3, 0.3, 0.3], [0.05, 0.05, 0.05, 0.85], [0.25, 0.25, 0.25, 0.25]]


def searched(monkeypatch, plan, rows=2, table=TABLE):
    """Search the chain."""
    monkeypatch.setattr(beam, "EncoderDecoderCache", Nothing)
    model = Chain(table, 3)
    prompts = torch.zeros((rows, 1), dtype=torch.long)
    found = beam.search(model, Encoded(torch.zeros(rows, 1, 1)), prompts, lambda _, scores: scores, plan, end=3)
    return found, model.steps


def every_way():
    """Return all texts of up to five tokens with their log-probabilities, end included, where they come to one."""
    for length in range(6):
        for tokens in itertools.product(range(3), repeat=length):
            line, total = (0, *tokens), 0.0
            for before, after in itertools.pairwise(line):
                total += float(np.log(TABLE[before][after])) if TABLE[before][after] else -np.inf
            if length < 5:
                yield tokens, total + float(np.log(TABLE[line[-1]][3]))


@pytest.mark.parametrize("penalty", [None, 0.0, 1.0])
def test_many_beams_find_the_best_text_of_all(monkeypatch, penalty):
    """With beams and patience enough, the text found is the best of all that there are, by either penalty."""
    found, _ = searched(monkeypatch, beam.Plan(40, 3.0, penalty))
    tokens, total = max(every_way(), key=lambda way: rows.rank(way[1], len(way[0]), penalty))
    for row in found:
        assert row.complete
        assert rows.rank(row.total, len(row.tokens), penalty) == pytest.approx(
            rows.rank(total, len(tokens), penalty), abs=1e-4
        )


def test_a_length_penalty_prefers_other_lengths(monkeypatch):
    """By the sum alone, the shortest text wins where each token is likely and the end is not."""
    table = [[0.8, 0.05, 0.05, 0.1]] * 4
    short, long = (
        searched(monkeypatch, beam.Plan(40, 3.0, penalty), table=table)[0][0].tokens for penalty in (0.0, 2.0)
    )
    assert (short, long) == ((), (0, 0, 0, 0))


def test_patience_waits_for_more_beams(monkeypatch):
    """A row is done when patience times the beams have ended."""
    steps = [searched(monkeypatch, beam.Plan(2, patience, None))[1] for patience in (0.5, 1.0, 2.0)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_one_beam_is_greedy(engine, windows):
    """With a single beam the search writes what `generate` does, with the same log-probabilities."""
    encoded = encode(engine._model, engine._features(windows))
    with torch.inference_mode():
        found = engine._searched(encoded, ["en"] * 3, ENGLISH)
    for beam_, row in zip(found, engine.transcribe(windows, ENGLISH).rows, strict=True):
        assert beam_.tokens == row.tokens
        assert beam_.logprobs[: len(row.tokens)] == pytest.approx(row.logprobs, abs=1e-3)


def test_beams_find_likelier_text(engine, windows):
    """The text of four beams is at least as likely as the greedy one, whatever else is in the batch."""
    greedy = engine.transcribe(windows, ENGLISH).rows
    wanted = replace(ENGLISH, beam_size=4)
    beams = engine.transcribe(windows, wanted).rows
    assert [row.tokens for row in beams] != [row.tokens for row in greedy]
    assert sum(row.avg_logprob for row in beams) > sum(row.avg_logprob for row in greedy)
    assert beams[1].tokens == engine.transcribe(windows[1:2], wanted).rows[0].tokens
    assert all(len(row.logprobs) == len(row.tokens) for row in beams)


def test_the_best_of_several_candidates_is_kept(engine, windows):
    """The first candidate is the one that is drawn alone, and more of them find a likelier text."""
    hot = replace(ENGLISH, temperature=0.8)
    one, six = (engine.transcribe(windows, replace(hot, best_of=count)).rows for count in (1, 6))
    assert all(b.avg_logprob >= a.avg_logprob - 1e-6 for a, b in zip(one, six, strict=True))
    assert [row.tokens for row in one] != [row.tokens for row in six]
    assert len(six) == len(windows)


@pytest.mark.parametrize("options", [{"initial_prompt": "Jörg, um 8 Uhr"}, {"hotwords": "Kraków 東京"}])
def test_a_prompt_reaches_the_model_as_transformers_gives_it(tmp_path, engine, windows, options):
    """Tokens equal those of `generate` with `prompt_ids`, and differ from those without a prompt."""
    from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder = tiny_whisper.make(tmp_path / "tiny")
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    features = WhisperFeatureExtractor()(windows[1], sampling_rate=16_000, return_tensors="pt").input_features
    vocabulary = engine._vocabulary
    text = vocabulary.encode(f" {next(iter(options.values()))}")
    text = text[-19:] if "initial_prompt" in options else text[:19]
    prompt = torch.tensor([vocabulary.previous, *text])
    same = {"language": "en", "task": "transcribe", "return_timestamps": True, "force_unique_generate_call": True}
    out = model.generate(features, prompt_ids=prompt, max_length=40, **same)[0].tolist()[len(prompt) + 3 :]
    kept = out[: out.index(vocabulary.end_of_text)] if vocabulary.end_of_text in out else out
    wanted = replace(ENGLISH, **options)
    (row,) = engine.transcribe(windows[1:2], wanted).rows
    assert list(row.tokens) == kept
    assert row.tokens != engine.transcribe(windows[1:2], ENGLISH).rows[0].tokens
    beams = engine.transcribe(windows[1:2], replace(wanted, beam_size=2)).rows[0]
    assert beams.tokens != engine.transcribe(windows[1:2], replace(ENGLISH, beam_size=2)).rows[0].tokens


def test_hot_words_and_prompt_share_the_room(engine):
    """Together they take no more than half of the longest text; of the prompt its end is kept."""
    ids = engine._abilities.prompt(replace(ENGLISH, hotwords="h" * 100, initial_prompt="a" * 100 + "z"))
    assert len(ids) == 40 // 2
    assert ids[0] == engine._vocabulary.previous
    assert engine.tokenizer.decode(ids[1:10]).strip("h ") == ""
    assert engine.tokenizer.decode(ids).endswith("az")
    assert engine._abilities.prompt(ENGLISH) == []


@pytest.mark.parametrize("text", ["<|endoftext|>", "x<|startoftranscript|><|de|>"])
def test_a_prompt_cannot_hold_special_tokens(engine, text):
    """A recording's metadata may say anything: what would steer the decoder is refused by its option's name."""
    for name in ("initial_prompt", "hotwords"):
        with pytest.raises(Rejected, match=f"--{name.replace('_', '-')} holds a special token"):
            engine.check(replace(ENGLISH, **{name: text}))


def test_suppressed_tokens_are_never_written(engine, windows):
    """-1 stands for the model's own list; without it that list doesn't count; an unknown id is refused."""
    greedy = engine.transcribe(windows, ENGLISH).rows
    common = max(
        (token for row in greedy for token in row.tokens if token < 256),
        key=[t for r in greedy for t in r.tokens].count,
    )
    for beams in (1, 2):
        wanted = replace(ENGLISH, suppress_tokens=(-1, common), beam_size=beams)
        assert common not in {token for row in engine.transcribe(windows, wanted).rows for token in row.tokens}
    assert engine._abilities.never_written(replace(ENGLISH, suppress_tokens=(-1, 7))) == [1, 2, 7]
    assert engine._abilities.never_written(replace(ENGLISH, suppress_tokens=())) == []
    with pytest.raises(Rejected, match="has no token 99999"):
        engine.check(replace(ENGLISH, suppress_tokens=(99_999,)))


def test_a_checkpoint_with_fewer_decoder_layers_does_not_translate(engine, monkeypatch):
    """Turbo writes the language that it hears whatever it is asked for: that is said and not done."""
    monkeypatch.setattr(engine, "_abilities", replace(engine._abilities, pruned=True))
    with pytest.raises(Rejected, match="was not trained to translate"):
        engine.check(replace(ENGLISH, task="translate"))
    engine.check(ENGLISH)
