"""The systems that throughput.py compares, each as its users call it: an mp3 file in, a text file out."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fixed_tokens
import numpy as np
import numpy.typing as npt

from run_transcription import audio, direct_transcribe, optimized_loader
from run_transcription.records import SAMPLE_RATE, Decoding, ModelSpec

Samples = npt.NDArray[np.float32]
WINDOW = 30 * SAMPLE_RATE
ENGLISH = {"language": "en", "task": "transcribe"}


@dataclass(frozen=True, slots=True)
class Job:
    """What all systems are told."""

    model: Path  # a checkpoint of fixed_tokens.py; in CTranslate2's and whisper.cpp's forms beside it
    batch_size: int
    dtype: str
    threads: int


@dataclass(frozen=True, slots=True)
class Done:
    """The text of a recording, and seconds by stage where a system tells them."""

    text: str
    stages: dict[str, float] = field(default_factory=dict)


Transcriber = Callable[[Path], Done]


def ours(job: Job) -> Transcriber:
    """Return this program, without the result's upload."""
    spec = ModelSpec(str(job.model), dtype=job.dtype, device="cpu")
    engine = optimized_loader.load(spec).engine
    decoding = Decoding(language="en", batch_size=job.batch_size)

    def transcribe(path: Path) -> Done:
        with audio.open_recording(path) as reader:
            transcript, timing = direct_transcribe.transcribe(reader.blocks(), engine, decoding)
        return Done(
            transcript.text, {"features": timing.features, "encoder": timing.encode, "decoder": timing.generate}
        )

    return transcribe


def generate(job: Job, *, batched: bool, unique: bool = False) -> Transcriber:
    """Return transformers' generate on windows of 30 s, one after the other or in batches."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(job.model, dtype=job.dtype).eval()
    processor = WhisperProcessor.from_pretrained(job.model)
    size = job.batch_size if batched else 1
    more = {"force_unique_generate_call": True} if unique else {}

    def transcribe(path: Path) -> Done:
        texts, windows = [], [*_windows(path)]
        for i in range(0, len(windows), size):
            features = processor(windows[i : i + size], sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with torch.inference_mode():
                ids = model.generate(features.to(model.dtype), **ENGLISH, return_timestamps=True, **more)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
        return Done("".join(texts))

    return transcribe


def pipeline(job: Job) -> Transcriber:
    """Return transformers' pipeline with chunks of 30 s and its usual strides."""
    from transformers import pipeline as made

    pipe = made(
        "automatic-speech-recognition",
        model=str(job.model),
        dtype=job.dtype,
        chunk_length_s=30,
        batch_size=job.batch_size,
        device="cpu",
    )

    def transcribe(path: Path) -> Done:
        return Done(pipe(_samples(path), return_timestamps=True, generate_kwargs=ENGLISH)["text"])

    return transcribe


def faster_whisper(job: Job, *, batched: bool, compute_type: str) -> Transcriber:
    """Return faster-whisper, sequential or batched, greedy; batched with its VAD, as it wants."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = str(job.model.with_name(f"{job.model.name}-ctranslate2"))
    model = WhisperModel(folder, device="cpu", compute_type=compute_type, cpu_threads=job.threads)
    system: Any = BatchedInferencePipeline(model) if batched else model
    more: dict[str, Any] = {"batch_size": job.batch_size} if batched else {"condition_on_previous_text": False}

    def transcribe(path: Path) -> Done:
        segments, _ = system.transcribe(str(path), language="en", beam_size=1, without_timestamps=False, **more)
        return Done("".join(segment.text for segment in segments))

    return transcribe


def openai_whisper(job: Job) -> Transcriber:
    """Return openai-whisper, greedy, with its thresholds."""
    import torch
    import whisper
    from safetensors.torch import load_file
    from whisper.model import ModelDimensions

    config = _config(job.model)
    sizes = (config["num_mel_bins"], 1500, config["d_model"], config["encoder_attention_heads"])
    deep = (config["encoder_layers"], config["vocab_size"], 448, config["d_model"], config["decoder_attention_heads"])
    model = whisper.model.Whisper(ModelDimensions(*sizes, *deep, config["decoder_layers"]))
    weights = {openai_name(name): weight for name, weight in load_file(job.model / "model.safetensors").items()}
    left = model.load_state_dict(weights, strict=False)
    if left.unexpected_keys:
        raise RuntimeError(f"unknown weights: {left.unexpected_keys[:3]}")
    model.eval()

    def transcribe(path: Path) -> Done:
        with torch.inference_mode():
            found = model.transcribe(_samples(path), **ENGLISH, condition_on_previous_text=False, fp16=False)
        return Done(found["text"])

    return transcribe


def whisper_cpp(job: Job) -> Transcriber:
    """Return whisper.cpp through pywhispercpp."""
    from pywhispercpp.model import Model

    model = Model(
        str(job.model.with_suffix(".ggml")),
        n_threads=job.threads,
        print_progress=False,
        redirect_whispercpp_logs_to=None,
    )

    def transcribe(path: Path) -> Done:
        return Done("".join(f" {segment.text}" for segment in model.transcribe(_samples(path), language="en")))

    return transcribe


SYSTEMS: dict[str, Callable[[Job], Transcriber]] = {
    "ours": ours,
    "generate, one by one": partial(generate, batched=False),
    "generate, batched": partial(generate, batched=True),
    "generate, batched, one call": partial(generate, batched=True, unique=True),
    "pipeline": pipeline,
    "faster-whisper": partial(faster_whisper, batched=False, compute_type="float32"),
    "faster-whisper int8": partial(faster_whisper, batched=False, compute_type="int8"),
    "faster-whisper batched": partial(faster_whisper, batched=True, compute_type="float32"),
    "faster-whisper batched int8": partial(faster_whisper, batched=True, compute_type="int8"),
    "openai-whisper": openai_whisper,
    "whisper.cpp": whisper_cpp,
}


def prepare(model: Path) -> None:
    """Write a checkpoint in the other systems' forms beside it."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(model), copy_files=files).convert(str(model.with_name(f"{model.name}-ctranslate2")))
    write_ggml(model, model.with_suffix(".ggml"))


def openai_name(name: str) -> str:
    """Return what openai-whisper calls a weight of transformers."""
    for theirs, own in _NAMES:
        name = name.replace(theirs, own)
    return name


# in this order: fc1 and fc2 have to be known before the layer norms behind them
_NAMES = (
    ("model.", ""),
    ("layers", "blocks"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("final_layer_norm", "mlp_ln"),
    (".self_attn.q_proj", ".attn.query"),
    (".self_attn.k_proj", ".attn.key"),
    (".self_attn.v_proj", ".attn.value"),
    (".self_attn.out_proj", ".attn.out"),
    (".self_attn_layer_norm", ".attn_ln"),
    (".encoder_attn.q_proj", ".cross_attn.query"),
    (".encoder_attn.k_proj", ".cross_attn.key"),
    (".encoder_attn.v_proj", ".cross_attn.value"),
    (".encoder_attn.out_proj", ".cross_attn.out"),
    (".encoder_attn_layer_norm", ".cross_attn_ln"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
    ("embed_tokens", "token_embedding"),
    ("encoder.embed_positions.weight", "encoder.positional_embedding"),
    ("decoder.embed_positions.weight", "decoder.positional_embedding"),
)


def write_ggml(model: Path, path: Path) -> None:
    """Write a checkpoint as whisper.cpp's loader reads it: header, mel filters, vocabulary, float32 tensors.

    The order is that of `whisper_model_load` in whisper.cpp.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer
    from transformers.audio_utils import mel_filter_bank

    config = _config(model)
    sizes = ("encoder_attention_heads", "encoder_layers")
    numbers = [0x67676D6C, config["vocab_size"], 1500, config["d_model"], *(config[size] for size in sizes), 448]
    numbers += [
        config["d_model"],
        config["decoder_attention_heads"],
        config["decoder_layers"],
        config["num_mel_bins"],
        0,
    ]
    filters = mel_filter_bank(
        201, config["num_mel_bins"], 0.0, 8000.0, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    ).T
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json"))
    letters = {letter: byte for byte, letter in enumerate(fixed_tokens.letters())}
    words = [bytes(letters[each] for each in vocabulary.id_to_token(i)) for i in range(fixed_tokens.PLAIN)]
    with path.open("wb") as file:
        file.write(struct.pack(f"<{len(numbers)}i", *numbers))
        file.write(struct.pack("<2i", *filters.shape) + np.ascontiguousarray(filters, dtype="<f4").tobytes())
        file.write(struct.pack("<i", len(words)))
        for word in words:
            file.write(struct.pack("<i", len(word)) + word)
        for name, weight in load_file(model / "model.safetensors").items():
            own = openai_name(name)
            data = weight[:, None] if own.endswith(("conv1.bias", "conv2.bias")) else weight
            file.write(struct.pack("<3i", data.ndim, len(own), 0) + struct.pack(f"<{data.ndim}i", *data.shape[::-1]))
            file.write(own.encode() + np.ascontiguousarray(data, dtype="<f4").tobytes())


def _config(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return found


def _samples(path: Path) -> Samples:
    with audio.open_recording(path) as reader:
        return np.concatenate([*reader.blocks()])


def _windows(path: Path) -> Iterator[Samples]:
    samples = _samples(path)
    for start in range(0, len(samples), WINDOW):
        yield samples[start : start + WINDOW]
