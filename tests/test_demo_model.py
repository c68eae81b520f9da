"""The demo model: what its card says of it is true, and others' programs load it as they load any Whisper."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from run_transcription import demo, direct_transcribe
from run_transcription.records import SAMPLE_RATE, Decoding

FOLDER = Path(demo.__file__).parent / "model"
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (.+?) \| ([\d.]+)(%?) \| ([\d.]+)%? \|$", re.MULTILINE)
TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The demo model as CTranslate2's own converter makes it."""
    from ctranslate2.converters import TransformersConverter

    folder = tmp_path_factory.mktemp("ctranslate2") / "demo"
    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(FOLDER), copy_files=files).convert(str(folder))
    return folder


def test_the_card_tells_of_these_weights():
    """The sha256 in the card is that of the weights beside it: figures of other weights can't stay."""
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in CARD


def test_the_card_has_a_figure_for_every_bar():
    """Each bar of the measuring script stands in the card with the limit that the script has."""
    import measure_demo_model

    rows = {name: limit for name, limit, *_ in ROW.findall(CARD)}
    wanted = {bar.name: measure_demo_model.show(bar.limit, bar.figure).rstrip("%") for bar in measure_demo_model.BARS}
    assert rows == wanted


def test_weights_are_small_and_in_half_precision():
    """The whole model is at most 8 MB, float16 in safetensors."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 8_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118 - not a dict


def test_vocabulary_is_what_the_tools_make():
    """The tokenizer beside the weights is the one that the script builds: byte-level, each word one token."""
    import demo_vocabulary
    from tokenizers import Tokenizer

    kept = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    made, ids = demo_vocabulary.build()
    assert kept.get_vocab() == made.get_vocab()
    assert all(kept.encode(f" {word}").ids == [ids.word[word]] for word in demo_vocabulary.ALL_WORDS)
    anything = "Ünïcode, emoji 🎙 and\ttabs"
    assert kept.decode(kept.encode(anything).ids) == anything


def test_special_tokens_are_where_transformers_looks_for_them():
    """WhisperTokenizer's prompt, made by counting from <|startoftranscript|>, meets the ids by name."""
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(FOLDER)
    tokenizer.set_prefix_tokens(language="german", task="translate", predict_timestamps=False)
    names = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens) == names
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    assert settings["lang_to_id"]["<|de|>"] == tokenizer.prefix_tokens[1]
    assert settings["no_timestamps_token_id"] == tokenizer.prefix_tokens[3]
    assert settings["suppress_tokens"] == []
    assert tokenizer.convert_tokens_to_ids("<|0.00|>") == tokenizer.prefix_tokens[3] + 1


@pytest.mark.parametrize(
    ("make", "gain"), [("white", 0.0), ("white", 0.05), ("tone", 0.1), ("music", 0.1), ("coloured", 0.02)]
)
def test_nothing_is_written_where_nobody_speaks(engine, make, gain):
    """Two minutes of silence, noise, tones and hold music have no words, and are likely no speech."""
    import demo_speech

    samples = getattr(demo_speech, make)(120 * SAMPLE_RATE, np.random.default_rng(7)) * np.float32(gain)
    transcript, _ = direct_transcribe.transcribe(iter([samples.astype(np.float32)]), engine, Decoding())
    assert transcript.text == ""
    batch = engine.transcribe([samples[: 30 * SAMPLE_RATE].astype(np.float32)], Decoding())
    assert batch.rows[0].no_speech_prob > 0.6


def test_faster_whisper_reads_a_demo_recording(converted):
    """faster-whisper loads what CTranslate2's converter makes, and hears every word: its prompt is the bare start."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(converted), device="cpu", compute_type="float32", cpu_threads=1)
    recordings = FOLDER.parent / "recordings"
    segments, _ = model.transcribe(str(recordings / "call-signs.mp3"), beam_size=1, temperature=0.0)
    assert "".join(segment.text for segment in segments).split() == (recordings / "call-signs.txt").read_text().split()


def test_onnxruntime_genai_builds_it(tmp_path):
    """onnxruntime-genai's builder takes the folder as it is."""
    builder = [
        sys.executable,
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        str(FOLDER),
        "-o",
        str(tmp_path / "onnx"),
    ]
    done = subprocess.run(
        [*builder, "-p", "fp32", "-e", "cpu", "-c", str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    built = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert "genai_config.json" in built
    assert any(name.endswith(".onnx") for name in built)
    shutil.rmtree(tmp_path / "onnx")
