"""Every engine keeps the same promises; and an engine's artefact is made, found, verified and refused."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
import torch
from click.testing import CliRunner

from run_transcription import chunking, convert, optimized_loader, vad
from run_transcription.audio import open_recording
from run_transcription.demo.command import RECORDINGS
from run_transcription.engines import artefact, golden, kinds, model_folder
from run_transcription.engines.rows import rank
from run_transcription.errors import ModelNotLoaded, OutOfMemory, Rejected, TranscriptionError
from run_transcription.fast_transcribe import transcribe
from run_transcription.records import ENGINES, Decoding, ModelSpec

OTHERS = ENGINES[1:]
ENGLISH = Decoding(language="en")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Make the demo model's artefact for every engine, in float32."""
    place = tmp_path_factory.mktemp("home")
    for engine in OTHERS:
        spec = spec_of(engine, place)
        convert.make(optimized_loader.resolve(spec), model_folder.state_folder(spec), engine, "float32", "cpu")
    return place


def spec_of(engine, home, model="demo", dtype="float32"):
    """Name a model for an engine on the CPU."""
    return ModelSpec(str(model), device="cpu", dtype=dtype, engine=engine, home=home)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, home):
    """Load the demo model, on one engine after the other."""
    return optimized_loader.load(spec_of(request.param, home)).engine


@pytest.fixture(scope="module")
def on_torch(home):
    """Load the demo model on torch, the reference."""
    return optimized_loader.load(spec_of("torch", home)).engine


@pytest.fixture(scope="module")
def windows():
    """Cut a window of some seconds from each demo recording, as a transcription does."""
    found = []
    for path in sorted(RECORDINGS.glob("*.*")):
        if path.suffix not in {".txt", ".json"}:
            with open_recording(path) as reader:
                heard = vad.Ear(reader.blocks(), vad.loud, 0.5).heard()
                found += [passage.samples for passage in itertools.islice(chunking.passages(heard, 9.0), 1)]
    return found


@pytest.fixture(scope="module")
def reference(on_torch, windows):
    """Transcribe the windows on torch, with the times of their words."""
    return on_torch.transcribe(windows, Decoding(word_timestamps=True)).rows


def noise(seed, seconds):
    """Make noise, in which a model with random weights hears something."""
    return (np.random.default_rng(seed).standard_normal(round(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module", params=ENGINES)
def tiny(request, tmp_path_factory):
    """Load a model with random weights, on one engine after the other."""
    folder = tiny_whisper.make(tmp_path_factory.mktemp("tiny") / "tiny", seed=1)
    return optimized_loader.load(spec_of(request.param, folder.parent / "home", folder)).engine


@pytest.mark.parametrize("engine", OTHERS, indirect=True)
def test_each_engine_writes_the_ids_of_torch(engine, reference, windows):
    """In float32 every window of the demo's recordings has the same ids, language and measures."""
    assert len(windows) == 4
    found = engine.transcribe(windows, Decoding())
    assert [row.tokens for row in found.rows] == [row.tokens for row in reference]
    for ours, theirs in zip(found.rows, reference, strict=True):
        assert (ours.language, ours.complete, ours.temperature) == (theirs.language, theirs.complete, 0.0)
        assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=2e-3)
        assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=2e-3)
        assert ours.language_probability == pytest.approx(theirs.language_probability, abs=2e-3)
        assert ours.logprobs == () or len(ours.logprobs) == len(ours.tokens)
    assert min(found.timing.features, found.timing.encode, found.timing.generate) > 0
    assert engine.tokenizer.decode(found.rows[0].tokens).strip()


def test_a_row_does_not_depend_on_its_batch(engine, windows):
    """Alone and among others a window has the same text."""
    together = engine.transcribe(windows[:2], ENGLISH).rows
    alone = engine.transcribe(windows[1:2], ENGLISH).rows
    assert together[1].tokens == alone[0].tokens


def test_what_may_be_detected_shares_the_probability(engine, windows):
    """Of the languages that are allowed the likeliest is taken, and its share is among those."""
    (row,) = engine.transcribe(windows[:1], Decoding(languages=("de",))).rows
    assert (row.language, row.language_probability) == ("de", pytest.approx(1.0))
    (row,) = engine.transcribe(windows[:1], Decoding(language="German")).rows
    assert (row.language, row.language_probability) == ("de", 1.0)


def test_silence_is_known_for_what_it_is(engine):
    """Where nobody speaks the probability of no speech is high, on every engine."""
    (row,) = engine.transcribe([np.zeros(160_000, np.float32)], ENGLISH).rows
    assert row.no_speech_prob > 0.6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"language": "klingon"}, "knows no language 'klingon'"),
        ({"chunk_length": 31.0}, "--chunk-length 31 is too long"),
        ({"suppress_tokens": (99_999,)}, "has no token 99999"),
        ({"initial_prompt": "<|endoftext|>"}, "special token"),
    ],
)
def test_what_can_not_be_is_refused_by_its_name(engine, wrong, said):
    """No engine passes over an option that it can't do."""
    with pytest.raises(Rejected, match=said):
        engine.check(Decoding(**wrong))
    assert engine.check(Decoding(language="German")).language == "de"


def test_the_long_form_is_torchs(engine, windows):
    """Other engines refuse --sequential, and say which one has it."""
    wanted = replace(ENGLISH, sequential=True)
    if engine.facts.engine == "torch":
        assert engine.transcribe_sequentially(windows[0], wanted, print)[0]
        return
    for ask in (lambda: engine.check(wanted), lambda: engine.transcribe_sequentially(windows[0], ENGLISH, print)):
        with pytest.raises(Rejected, match="--sequential is of --engine torch"):
            ask()
    with pytest.raises(Rejected, match="--short-windows is of --engine torch"):
        engine.check(replace(ENGLISH, short_windows=True))


def test_chance_changes_the_text_and_not_its_measure(tiny, tmp_path):
    """What is drawn at a temperature is measured without it, as torch measures the same ids."""
    window = noise(5, 7)
    plain, drawn = (tiny.transcribe([window], replace(ENGLISH, temperature=each)).rows[0] for each in (0.0, 0.5))
    assert drawn.tokens != plain.tokens
    assert drawn.temperature == 0.5
    folder = tiny_whisper.make(tmp_path / "tiny", seed=1)
    wanted = sum(forced(folder, window, drawn)) / (len(drawn.tokens) + 1)
    assert drawn.avg_logprob == pytest.approx(wanted, abs=0.02)


def forced(folder, window, row):
    """Return the log-probability of each id of a row and of its end, by torch and Whisper's rules."""
    from transformers.modeling_outputs import BaseModelOutput

    from run_transcription.engines import beam
    from run_transcription.engines.encoder import encode

    engine = optimized_loader.load(spec_of("torch", folder.parent / "home", folder)).engine
    prompt = engine._prompts(["en"], ENGLISH)
    ids = torch.cat([prompt, torch.tensor([[*row.tokens, engine.tokenizer.end_of_text]])], dim=1)
    rules = beam.processors(engine._model, engine._abilities.never_written(ENGLISH), prompt.shape[1])
    with torch.inference_mode():
        encoded = encode(engine._model, engine._features([window]))
        assert isinstance(encoded, BaseModelOutput)
        last = ids[:, : engine._abilities.longest]
        logits = engine._model(encoder_outputs=encoded, decoder_input_ids=last).logits[0].float()
        for place in range(prompt.shape[1], last.shape[1]):
            scores = rules(ids[:, :place], logits[None, place - 1].clone()).log_softmax(-1)
            yield scores[0, ids[0, place]].item()


def test_more_beams_find_what_is_likelier(tiny):
    """Of several beams the best is at least as good as the greedy text; a penalty on length is heard."""
    window = noise(6, 9)
    greedy, wide = (tiny.transcribe([window], replace(ENGLISH, beam_size=beams)).rows[0] for beams in (1, 5))
    means = [row.avg_logprob * (len(row.tokens) + 1) / len(row.tokens) for row in (greedy, wide)]
    assert wide.tokens != greedy.tokens
    assert means[1] >= means[0] - 1e-4
    for penalty in (0.0, 4.0):
        found = tiny.transcribe([window], replace(ENGLISH, beam_size=5, length_penalty=penalty)).rows[0]
        assert judged(found, penalty) >= judged(wide, penalty) - 1e-4


def test_a_text_is_as_long_as_the_model_can_write(tiny):
    """It goes on until prompt and text fill all positions; a row that is cut off there says so."""
    for prompt in ("", "x" * 60):  # which is cut to 19 of the model's 40 positions
        (row,) = tiny.transcribe([noise(5, 7)], replace(ENGLISH, initial_prompt=prompt)).rows
        assert (len(row.tokens), row.complete) == (40 - 3 - (20 if prompt else 0), False)


def judged(row, penalty):
    """Return by what a row is compared."""
    return rank(row.avg_logprob * (len(row.tokens) + 1), len(row.tokens), penalty)


@pytest.mark.parametrize("engine", OTHERS, indirect=True)
def test_words_are_where_torch_finds_them(engine, reference, windows):
    """Each id has its time inside the window, in order; half of the words begin within 0.25 s of torch's."""
    apart = []
    found = engine.transcribe(windows, Decoding(word_timestamps=True)).rows  # in several languages
    for row, theirs, window in zip(found, reference, windows, strict=True):
        assert len(row.times) == len(row.tokens) == len(row.logprobs)
        starts = [start for start, _ in row.times]
        assert starts == sorted(starts)
        assert all(0 <= time <= len(window) / 16_000 + 0.02 for span in row.times for time in span)
        apart += [abs(ours[0] - other[0]) for ours, other in zip(row.times, theirs.times, strict=True)]
        assert all(logprob <= 0 for logprob in row.logprobs)
    assert {row.language for row in found} == {"en", "de"}
    assert np.median(apart) <= 0.25


def test_a_text_without_words_has_times(tiny):
    """Silence, one sample, and a text that fills all there is, are timed as well."""
    wanted = replace(ENGLISH, word_timestamps=True)
    for row in tiny.transcribe([np.zeros(16_000, np.float32), np.zeros(1, np.float32), noise(1, 30)], wanted).rows:
        assert len(row.times) == len(row.tokens)


@pytest.mark.parametrize("error", [RuntimeError("CUDA failed with error out of memory"), MemoryError()])
def test_no_room_is_said(tiny, error, monkeypatch):
    """Where memory runs out each engine raises the same error, at which the batch is halved."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(tiny, "_features", fail)
    with pytest.raises(OutOfMemory, match="2 windows at a time"):
        tiny.transcribe([noise(1, 1)] * 2, ENGLISH)


@pytest.mark.parametrize("engine", OTHERS)
def test_an_artefact_is_loaded_first(home, engine):
    """What was made beforehand is verified and used, and says what it is; its golden clip is kept with it."""
    handle = optimized_loader.load(spec_of(engine, home, dtype="auto"))
    assert (handle.load.strategy, handle.load.skipped) == ("gpu_state", ())
    facts = handle.engine.facts
    assert (facts.id, facts.engine, facts.dtype, facts.device) == ("demo", engine, "float32", "cpu")
    assert facts.revision == optimized_loader.resolve(spec_of(engine, home)).revision
    kept = optimized_loader.read_golden(spec_of(engine, home))
    assert golden.difference(golden.hear(handle.engine), kept) is None


@pytest.fixture(params=OTHERS)
def own(request, home, tmp_path):
    """Copy an artefact, for a test to damage; with it the spec that names its folder."""
    folder = Path(shutil.copytree(home / request.param / "demo", tmp_path / "converted"))
    return spec_of(request.param, tmp_path / "home", folder, "auto")


def test_an_artefact_may_lie_anywhere(own):
    """--model names its folder; the checkpoint that it was made from is not needed."""
    handle = optimized_loader.load(own)
    assert (handle.load.strategy, handle.engine.facts.id) == ("gpu_state", "demo")


def flipped(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path):
    """Leave nothing in a file."""
    path.write_bytes(b"{}")


HARMS = [(flipped, "largest"), (Path.unlink, "largest"), (emptied, "tokenizer.json"), (Path.unlink, "tokenizer.json")]


@pytest.mark.parametrize(
    ("harm", "name"), [*HARMS, (emptied, model_folder.MANIFEST), (Path.unlink, model_folder.MANIFEST)]
)
def test_a_damaged_artefact_is_never_used(own, harm, name):
    """A changed bit, a missing file, a file that was cut off: each is named in one line, and nothing is transcribed."""
    folder = Path(own.model)
    largest = max((folder / artefact.MODEL).rglob("*"), key=lambda path: path.stat().st_size)
    harm(largest if name == "largest" else folder / name)
    with pytest.raises(ModelNotLoaded) as caught:
        optimized_loader.load(own)
    assert "\n" not in str(caught.value)
    assert any(word in str(caught.value) for word in ("damaged", "could not be read", "has not finished"))


def test_a_damaged_artefact_at_home_is_passed_over(home, own, tmp_path):
    """Where the checkpoint is here it is converted anew for this process, and the reason is kept."""
    place = tmp_path / "home" / own.engine / "demo"
    shutil.copytree(own.model, place)
    flipped(place / "tokenizer.json")
    handle = optimized_loader.load(spec_of(own.engine, tmp_path / "home"))
    assert handle.load.strategy == "standard"
    assert [skip.strategy for skip in handle.load.skipped] == ["gpu_state", "mmap"]
    assert "is damaged" in handle.load.skipped[0].reason


def test_a_folder_for_another_engine_is_told(own, home):
    """An artefact given to torch, and a checkpoint that was converted halfway, are named with what helps."""
    with pytest.raises(ModelNotLoaded, match=f"was made for another engine: use --engine {own.engine}"):
        optimized_loader.load(replace(own, engine="torch"))
    (Path(own.model) / model_folder.MANIFEST).unlink()
    with pytest.raises(ModelNotLoaded, match="no model.safetensors; run-transcription convert has not finished it"):
        optimized_loader.load(own)


def test_another_checkpoint_wants_another_artefact(tmp_path, monkeypatch):
    """A changed checkpoint, another dtype: the artefact is passed over with its reason, never used."""
    folder = tiny_whisper.make(tmp_path / "tiny")
    for engine in OTHERS:
        spec = spec_of(engine, tmp_path / "home", folder)
        convert.make(optimized_loader.resolve(spec), model_folder.state_folder(spec), engine, "float32", "cpu")
        assert optimized_loader.load(spec).load.strategy == "gpu_state"
        other = optimized_loader.load(replace(spec, dtype="int8"))
        assert other.load.skipped[0].reason == "the state has another dtype: float32 instead of int8"
        assert other.engine.facts.dtype == "int8"
    tiny_whisper.make(folder, seed=2)
    for engine in OTHERS:
        reason = optimized_loader.load(spec_of(engine, tmp_path / "home", folder)).load.skipped[0].reason
        assert reason.startswith("the state has another revision")


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_that_is_not_installed_names_its_extra(home, engine, monkeypatch):
    """Before anything is loaded, and at conversion too."""

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(kinds.metadata, "version", absent)
    said = rf"--engine {engine} is not installed: pip install 'run-transcription\[{engine}\]'"
    with pytest.raises(ModelNotLoaded, match=said):
        optimized_loader.load(spec_of(engine, home))
    done = CliRunner().invoke(convert.main, ["--model", "demo", "--engine", engine])
    assert done.exit_code == 1
    assert f"run-transcription[{engine}]" in done.stderr


def test_what_a_device_or_an_engine_has_not_is_refused(home):
    """A dtype that this CPU lacks, int8 on torch, an attention that is torch's: each in one line that helps."""
    with pytest.raises(ModelNotLoaded, match="--dtype int8: torch has not got it"):
        optimized_loader.load(spec_of("torch", home, dtype="int8"))
    for engine in OTHERS:
        with pytest.raises(ModelNotLoaded, match="--attention eager: .* has its own"):
            optimized_loader.load(replace(spec_of(engine, home), attention="eager"))
    with pytest.raises(ModelNotLoaded, match="--dtype int8_float16: .* not got it on this CPU; it has .*int8"):
        optimized_loader.load(spec_of("ctranslate2", home, dtype="int8_float16"))


def test_a_conversion_that_hears_something_else_is_not_kept(tmp_path, monkeypatch):
    """Float32 that differs from the checkpoint is an error; what stood there before stays as it was."""
    spec = spec_of("ctranslate2", tmp_path / "home", tiny_whisper.make(tmp_path / "tiny"))
    source, folder = optimized_loader.resolve(spec), model_folder.state_folder(spec)
    convert.make(source, folder, "ctranslate2", "float32", "cpu")
    before = artefact.read(folder, "ctranslate2")
    hear = golden.hear
    numbers = itertools.count()
    monkeypatch.setattr(golden, "hear", lambda engine: replace(hear(engine), words=(str(next(numbers)),)))
    with pytest.raises(TranscriptionError, match="was not converted well: ctranslate2 hears something else in float32"):
        convert.make(source, folder, "ctranslate2", "float32", "cpu")
    assert artefact.read(folder, "ctranslate2") == before
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]
    convert.make(source, folder, "ctranslate2", "int8", "cpu")  # fewer bits may hear something else
    assert artefact.read(folder, "ctranslate2").made_from.dtype == "int8"


def test_nothing_else_is_replaced(tmp_path):
    """A folder that is no artefact is left alone."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    done = CliRunner().invoke(convert.main, ["--model", "demo", "--output", str(tmp_path / "mine")])
    assert done.exit_code == 1
    assert "is in the way" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("engine", OTHERS)
def test_the_commands_of_the_page_work(engine, tmp_path, monkeypatch):
    """convert, load and transcribe, as a person types them; int8 is smaller and hears the same."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    model = ["--model", "demo", "--engine", engine]
    done = CliRunner().invoke(convert.main, [*model, "--quantization", "int8"])
    assert done.exit_code == 0, done.stderr
    assert f"use it    run-transcription transcribe --engine {engine}" in done.stdout
    tried = CliRunner().invoke(optimized_loader.main, [*model, "--device", "cpu", "--require", "gpu_state", "--json"])
    assert tried.exit_code == 0, tried.stderr
    trials = {trial["strategy"]: trial for trial in json.loads(tried.stdout)["strategies"]}
    assert trials["gpu_state"]["verdict"] == trials["standard"]["verdict"] == "golden result right"
    assert trials["mmap"]["reason"] == f"{engine} reads no checkpoint"
    heard = CliRunner().invoke(transcribe, [*model, "--device", "cpu", str(RECORDINGS / "call-signs.mp3")])
    assert heard.stdout.split() == (RECORDINGS / "call-signs.txt").read_text().split(), heard.stderr
    assert math.isfinite(trials["gpu_state"]["seconds"])
