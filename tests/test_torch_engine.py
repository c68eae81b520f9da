"""Tests of run_transcription.engines.torch_engine, against transformers used the long way round."""

import copy
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
import torch
from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from run_transcription import batches
from run_transcription.batches import Decoder
from run_transcription.engines import assemble, greedy, long_form, vocabulary
from run_transcription.engines.choosing import Chooser
from run_transcription.engines.encoder import encode
from run_transcription.engines.torch_engine import TorchEngine
from run_transcription.errors import ModelNotLoaded, OutOfMemory, Rejected, TranscriptionError
from run_transcription.records import Chunk, Decoding, ModelFacts

ENGLISH = Decoding(language="en")


def engine_of(folder, dtype="float32"):
    """Load a checkpoint."""
    model = assemble.mapped_model(folder, dtype, "sdpa")
    return TorchEngine(model, vocabulary.read(folder), ModelFacts("tiny", "0", "cpu", dtype, "sdpa"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a multilingual checkpoint."""
    return tiny_whisper.make(tmp_path_factory.mktemp("multilingual") / "tiny")


@pytest.fixture(scope="module")
def english_folder(tmp_path_factory):
    """Make an English-only checkpoint."""
    return tiny_whisper.make(tmp_path_factory.mktemp("english") / "tiny.en", multilingual=False)


@pytest.fixture(scope="module")
def engine(folder):
    """Load the multilingual checkpoint."""
    return engine_of(folder)


@pytest.fixture(scope="module")
def windows():
    """Make windows of several lengths and kinds, one of them silent."""
    rng = np.random.default_rng(0)
    noises = [(480_000, 0.1), (16_000, 0.5), (1, 0.0), (300_000, 0.01)]
    return [(rng.standard_normal(length) * level).astype(np.float32) for length, level in noises]


@pytest.fixture
def calls(engine):
    """Count how often encoder and decoder come to their last layer norm."""
    counted = {"encoder": 0, "decoder": 0}

    def count(name):
        return lambda *_: counted.__setitem__(name, counted[name] + 1)

    model = engine._model.model
    hooks = [getattr(model, name).layer_norm.register_forward_hook(count(name)) for name in counted]
    yield counted
    for hook in hooks:
        hook.remove()


def reference(folder, window, **options):
    """Decode one window with transformers alone: its own features, no batch, scores kept of every step."""
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    model.generation_config = GenerationConfig.from_pretrained(folder)
    features = WhisperFeatureExtractor()(window, sampling_rate=16_000, return_tensors="pt").input_features
    out = model.generate(
        features,
        **options,
        max_length=40,
        return_timestamps=True,
        force_unique_generate_call=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    steps = len(out.scores)
    tokens = out.sequences[0, -steps:].tolist()
    end = model.config.eos_token_id
    kept = tokens.index(end) if end in tokens else steps
    logprobs = [score.log_softmax(-1)[0, token].item() for score, token in zip(out.scores, tokens, strict=True)]
    start = torch.tensor([[model.config.decoder_start_token_id]])
    first = model(features, decoder_input_ids=start).logits[0, 0].softmax(-1).detach()
    return tuple(tokens[:kept]), sum(logprobs[: kept + 1]) / (kept + 1), first


def test_rows_equal_those_of_transformers(engine, folder, windows):
    """Tokens and mean log-probability of each row of a batch are what transformers gives for the window alone."""
    for row, window in zip(engine.transcribe(windows, ENGLISH).rows, windows, strict=True):
        tokens, logprob, first = reference(folder, window, language="en", task="transcribe")
        assert row.tokens == tokens
        assert row.avg_logprob == pytest.approx(logprob, abs=1e-4)
        assert row.no_speech_prob == pytest.approx(first[engine._vocabulary.no_speech].item(), rel=1e-3)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        replace(ENGLISH, initial_prompt="a", hotwords="b"),
        replace(ENGLISH, temperature=0.6, best_of=2),
        replace(ENGLISH, suppress_tokens=(72, 80, 90)),
    ],
)
def test_steps_of_our_own_give_what_generate_gives(engine, windows, decoding, monkeypatch):
    """Token ids are those of `generate` in the same batch, with prompts, by chance and with tokens left out."""
    ours = engine.transcribe(windows, decoding).rows
    monkeypatch.setattr(greedy, "applies", lambda _: False)
    theirs = engine.transcribe(windows, decoding).rows
    assert [row.tokens for row in ours] == [row.tokens for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        assert row.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-5)


def test_rows_end_where_the_model_ends_them(folder, windows):
    """End of text and the padding behind it are no tokens; the end's own probability counts, as at openai."""
    model = assemble.mapped_model(folder, "float32", "sdpa")
    ends = engine_of(folder)
    embedding = model.model.decoder.embed_tokens.weight
    embedding[model.config.eos_token_id] = embedding[72] * 1.05  # what was id 72 now ends the row
    ends._model.load_state_dict(model.state_dict())
    rows = ends.transcribe(windows, ENGLISH).rows
    lengths = {len(row.tokens) for row in rows}
    assert all(row.complete == (len(row.tokens) < 36) for row in rows)  # 40, less the prompt of 3 and the end itself
    assert len(lengths) > 1, "rows of one length have no padding to strip"
    assert min(lengths) < 30
    for row, window in zip(rows, windows, strict=True):
        alone = ends.transcribe([window], ENGLISH).rows[0]
        assert ends.tokenizer.end_of_text not in row.tokens
        assert row.tokens == alone.tokens
        assert row.avg_logprob == pytest.approx(alone.avg_logprob, abs=1e-4)


@pytest.mark.parametrize("positions", [100, 1500])
def test_the_encoder_hears_short_windows_as_a_shorter_model_does(engine, positions):
    """What it makes of fewer frames is what transformers' encoder gives whose positions are cut off there."""
    features = torch.randn(2, 80, 2 * positions, generator=torch.Generator().manual_seed(1))
    shorter = copy.deepcopy(engine._model.model.encoder)
    shorter.config.max_source_positions = positions
    shorter.embed_positions = torch.nn.Embedding.from_pretrained(shorter.embed_positions.weight[:positions])
    with torch.inference_mode():
        wanted = shorter(features).last_hidden_state
        assert torch.equal(encode(engine._model, features).last_hidden_state, wanted)


def test_short_windows_are_padded_by_a_second(engine, windows):
    """The longest window of the batch says how much is heard: 20 s for 18.75, never more than a full window."""
    long, second, _, third = windows
    assert engine._features([second, third], short=True).shape[-1] == 2000
    assert engine._features([second], short=True).shape[-1] == 200
    assert engine._features([long, second], short=True).shape[-1] == engine._features([second]).shape[-1] == 3000


def test_the_encoder_runs_once_for_a_batch(engine, windows, calls):
    """One encoder pass, one decoder step for language and silence, and one step for each token of the longest row."""
    rows = engine.transcribe(windows, Decoding()).rows
    longest = max(len(row.tokens) for row in rows)
    assert calls["encoder"] == 1
    assert longest + 1 <= calls["decoder"] <= longest + 3


def test_language_is_detected_for_each_row(engine, folder, windows):
    """Without a language, each row has the likeliest of the model's languages and its share among them."""
    rows = engine.transcribe(windows, Decoding()).rows
    assert len({row.language for row in rows}) > 1, "windows of one language don't show that rows differ"
    ids = engine._model.generation_config.lang_to_id
    for row, window in zip(rows, windows, strict=True):
        tokens, _, first = reference(folder, window, language=row.language, task="transcribe")
        among = {name: first[i].item() for name, i in ids.items()}
        assert f"<|{row.language}|>" == max(among, key=among.get)
        assert row.language_probability == pytest.approx(max(among.values()) / sum(among.values()), rel=1e-3)
        assert row.tokens == tokens


@pytest.mark.parametrize("name", ["de", "German", "<|de|>", "DE"])
def test_a_language_may_be_given_in_any_spelling(engine, folder, windows, name):
    """A given language is used for all rows, it is certain, and from then on it is called by its code."""
    assert engine.check(Decoding(language=name, batch_size=3)) == Decoding(language="de", batch_size=3)
    (row,) = engine.transcribe(windows[:1], Decoding(language=name)).rows
    assert (row.language, row.language_probability) == ("de", 1.0)
    assert row.tokens == reference(folder, windows[0], language="de", task="transcribe")[0]


def test_translation_has_its_own_prompt(engine, folder, windows):
    """The task reaches the decoder."""
    (row,) = engine.transcribe(windows[:1], Decoding(language="de", task="translate")).rows
    assert row.tokens == reference(folder, windows[0], language="de", task="translate")[0]
    assert row.tokens != engine.transcribe(windows[:1], Decoding(language="de")).rows[0].tokens


def test_an_english_only_model_gets_the_bare_prompt(english_folder, windows):
    """English-only checkpoints take neither language nor task; their rows are English."""
    rows = engine_of(english_folder).transcribe(windows, Decoding()).rows
    assert {(row.language, row.language_probability) for row in rows} == {("en", 1.0)}
    assert [row.tokens for row in rows] == [reference(english_folder, window)[0] for window in windows]


def test_an_outdated_generation_config_is_completed(tmp_path, folder, windows):
    """A fine-tune whose generation config names neither languages nor timestamps decodes like one that does."""
    outdated = engine_of(tiny_whisper.make(tmp_path / "old", outdated=True))
    assert {row.language for row in outdated.transcribe(windows, Decoding()).rows} <= set(tiny_whisper.LANGUAGES)
    assert outdated._model.generation_config.task_to_id == engine_of(folder)._model.generation_config.task_to_id


@pytest.mark.parametrize(
    ("decoding", "says"),
    [
        (Decoding(language="klingon"), "tiny knows no language 'klingon'; it knows de, en, fr"),
        (Decoding(language="ja"), "tiny knows no language 'ja'"),
        (Decoding(chunk_length=31), "--chunk-length 31 is too long"),
    ],
)
def test_what_the_model_cannot_do_is_said(engine, windows, decoding, says):
    """An unknown language or a chunk over the window is one clear line, and names what is known."""
    with pytest.raises(Rejected, match=says) as caught:
        engine.transcribe(windows, decoding)
    assert caught.value.code == "unsupported_option"


def test_translation_needs_a_model_that_can(tmp_path, english_folder):
    """Neither an English-only model nor one without task tokens translates."""
    deaf = tiny_whisper.make(tmp_path / "no-tasks", translates=False)
    for folder in (english_folder, deaf):
        with pytest.raises(Rejected, match="can't translate"):
            engine_of(folder).check(Decoding(task="translate"))
    with pytest.raises(Rejected, match="it knows en"):
        engine_of(english_folder).check(Decoding(language="de"))
    assert engine_of(deaf).transcribe([np.zeros(9, np.float32)], ENGLISH).rows[0].language == "en"


def test_text_is_what_the_bytes_say(folder):
    """Byte-level tokens come back as UTF-8 with the leading space; special tokens and timestamps are left out."""
    words = vocabulary.read(folder)
    ids = tiny_whisper.tokenizer().encode(" Grüße, 東京").ids
    marked = [words.timestamp_begin, *ids, words.start, words.timestamp_begin + 50]
    assert words.decode(marked) == " Grüße, 東京"


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    """A vocabulary without Whisper's special tokens is named, not decoded with."""
    other = tiny_whisper.tokenizer().to_str().replace("<|notimestamps|>", "<|other|>")
    (tmp_path / "tokenizer.json").write_text(other)
    with pytest.raises(ModelNotLoaded, match=re.escape("has no <|notimestamps|>")):
        vocabulary.read(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs(folder, windows, dtype):
    """Features are cast to the model's dtype: float32 features would not meet its weights."""
    rows = engine_of(folder, dtype).transcribe(windows, ENGLISH).rows
    assert all(row.tokens and np.isfinite(row.avg_logprob) for row in rows)


def test_a_row_at_the_limit_is_not_complete(engine, windows):
    """Where the model comes to no end before its longest text, its row says so."""
    rows = engine.transcribe(windows, ENGLISH).rows
    assert {(len(row.tokens), row.complete) for row in rows} == {(37, False)}


@pytest.mark.parametrize(
    ("place", "value"),
    [("encoder.layer_norm.weight", 6e4), ("decoder.embed_positions.weight", float("nan"))],
)
def test_overflow_is_said(folder, windows, place, value):
    """Numbers beyond float16, at the first step or at a later one, are one line that says what helps: no result."""
    overflowing = engine_of(folder, "float16")
    parameter = overflowing._model.model.get_parameter(place)
    parameter[5:] = value  # of the positions, those after the prompt
    with pytest.raises(TranscriptionError, match="tiny gave NaN in float16: try --dtype float32") as caught:
        overflowing.transcribe(windows, ENGLISH)
    assert not isinstance(caught.value, Rejected)


def test_every_stage_has_its_seconds(engine, windows):
    """The stages of a batch are timed, and add up to the whole."""
    timing = engine.transcribe(windows[:1], ENGLISH).timing
    assert min(timing.features, timing.encode, timing.generate) > 0
    assert timing.features + timing.encode + timing.generate == pytest.approx(timing.wall)


def test_nothing_is_written_to_standard_error(folder):
    """Loading and decoding is quiet: no warnings of transformers, of generate or of torch."""
    program = """
import sys, numpy, pathlib
from run_transcription.engines import assemble, long_form, vocabulary
from run_transcription.engines.torch_engine import TorchEngine
from run_transcription.records import Decoding, ModelFacts
folder = pathlib.Path(sys.argv[1])
engine = TorchEngine(assemble.mapped_model(folder, "float32", "sdpa"), vocabulary.read(folder), ModelFacts(*["-"] * 5))
for _ in range(2):
    print(len(engine.transcribe([numpy.zeros(16000, "float32")] * 2, Decoding()).rows))
engine.transcribe_sequentially(numpy.ones(16000, "float32"), Decoding(), lambda _: None)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == ["2", "2"]
    assert done.stderr == ""


def test_each_token_has_its_probability(engine, windows):
    """A row's log-probabilities are those of its tokens; their mean with the end's is the row's."""
    for row in engine.transcribe(windows, ENGLISH).rows:
        assert len(row.logprobs) == len(row.tokens)
        assert max(row.logprobs) <= 0
        assert sum(row.logprobs) / (len(row.tokens) + 1) == pytest.approx(row.avg_logprob, abs=0.05)


def test_chance_is_the_same_at_every_run(engine, windows):
    """At a temperature a window has one text, whatever else is in its batch; it is not the likeliest one."""
    hot = replace(ENGLISH, temperature=1.0)
    rows = engine.transcribe(windows, hot).rows
    assert [row.tokens for row in rows] == [row.tokens for row in engine.transcribe(windows, hot).rows]
    alone = engine.transcribe(windows[1:2], hot).rows[0]
    assert rows[1].tokens == alone.tokens
    cold = engine.transcribe(windows, ENGLISH).rows
    assert [row.tokens for row in rows] != [row.tokens for row in cold]
    assert all(row.temperature == 1.0 for row in rows)
    assert sum(row.avg_logprob for row in rows) < sum(row.avg_logprob for row in cold)
    warm = engine.transcribe(windows, replace(hot, temperature=0.8)).rows
    assert [row.tokens for row in warm] != [row.tokens for row in rows]


def test_tokens_are_drawn_by_their_probabilities():
    """With a temperature a token is drawn as often as it is likely; what is suppressed never is.

    Its log-probability is the one without the temperature.
    """
    scores = torch.tensor([2.0, 1.0, 0.0, -torch.inf]).repeat(4000, 1)
    chooser = Chooser(4000, end_of_text=9, limit=10, device=torch.device("cpu"))
    chooser.heat(0.5, [np.full(1, i, np.float32) for i in range(4000)])
    chosen = chooser(torch.zeros(4000, 1), scores).argmax(-1)
    wanted = (scores[0] / 0.5).softmax(-1)
    found = torch.bincount(chosen, minlength=4) / 4000
    assert torch.allclose(found, wanted, atol=0.03)
    assert found[3] == 0
    assert torch.allclose(chooser.logprobs[:, 0], scores[0].log_softmax(-1)[chosen])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Unable to allocate 1.83 MiB"),
    ],
)
def test_no_room_is_said(engine, windows, error, monkeypatch):
    """What torch, its libraries and numpy raise where memory runs out becomes one line; other errors stay."""

    def fail(*_):
        raise error

    monkeypatch.setattr(engine, "_transcribe", fail)
    with pytest.raises(OutOfMemory, match="4 windows at a time don't fit into memory: use a smaller --batch-size"):
        engine.transcribe(windows, ENGLISH)
    monkeypatch.setattr(long_form, "passed", fail)
    with pytest.raises(OutOfMemory, match="does not fit into memory: leave --sequential out"):
        engine.transcribe_sequentially(windows[0], ENGLISH, lambda _: None)
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        engine.transcribe(windows, ENGLISH)


@pytest.mark.gpu
def test_a_full_gpu_halves_the_batch(folder, windows):
    """With memory for some windows only, all are transcribed, in smaller batches."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    model = assemble.mapped_model(folder, "float32", "sdpa").to("cuda")
    facts = ModelFacts("tiny", "full", "cuda", "float32", "sdpa")
    full = TorchEngine(model, vocabulary.read(folder), facts)
    many = {Chunk(i, i + len(windows[0])): windows[0] for i in range(64)}
    full.transcribe([windows[0]], ENGLISH)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((total - free + 40_000_000) / total)
    try:
        rows = Decoder(full, replace(ENGLISH, batch_size=64, temperature_increment_on_fallback=0.0), {}).rows(many)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(rows) == 64
    assert batches._safe_sizes.pop(facts) < 64
    assert len({row.tokens for row in rows.values()}) == 1
