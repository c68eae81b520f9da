"""The systems that throughput.py compares, each as its users call it: audio files in, their texts out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fixed_tokens import PLAIN
from ggml import config_of, openai_name, write_ggml

from run_transcription import audio, fast_transcribe, optimized_loader
from run_transcription.records import SAMPLE_RATE, Decoding, ModelSpec, Timing
from run_transcription.records import Job as Recording

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
    """The text of all recordings, and seconds by stage where a system tells them."""

    text: str
    stages: dict[str, float] = field(default_factory=dict)
    lengths: list[int] | None = None  # of each window in plain tokens, where overlaps are cut out of the text


Transcriber = Callable[[Sequence[Path]], Done]


@dataclass(frozen=True, slots=True)
class System:
    """A program, and the dtype of its weights."""

    name: str
    dtype: str
    make: Callable[[Job], Transcriber]

    @property
    def label(self) -> str:
        """Tell it from all others."""
        return f"{self.name}, {self.dtype}"


def ours(job: Job, *, short: bool = False) -> Transcriber:
    """Return this program, which writes a json and a text for each recording."""
    spec = ModelSpec(str(job.model), dtype=job.dtype, device="cpu")
    handle = optimized_loader.load(spec)
    decoding = Decoding(language="en", batch_size=job.batch_size, short_windows=short)
    listening = _listening()

    def transcribe(paths: Sequence[Path]) -> Done:
        listening.clear()
        texts, spent = [], Timing()
        for path in paths:
            recording = Recording(str(path), str(path.with_suffix("")))
            result = fast_transcribe.process(recording, handle, decoding, ("json", "txt"))
            texts.append(result.transcript.text if result.transcript else f"[{result.error}]")
            spent += result.timing
        stages = {"decode": spent.decode, "VAD": sum(listening), "features": spent.features, "encoder": spent.encode}
        stages |= {"decoder": spent.generate}
        return Done("".join(texts), stages | {"text": spent.wall - sum(stages.values())})

    return transcribe


def generate(job: Job, *, batched: bool, unique: bool = False) -> Transcriber:
    """Return transformers' generate on windows of 30 s, one after the other or in batches."""
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(job.model, dtype=job.dtype).eval()
    processor = WhisperProcessor.from_pretrained(job.model)
    size = job.batch_size if batched else 1
    more = {"force_unique_generate_call": True} if unique else {}

    def transcribe(paths: Sequence[Path]) -> Done:
        texts, windows = [], [window for path in paths for window in _windows(path)]
        for i in range(0, len(windows), size):
            features = processor(windows[i : i + size], sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with torch.inference_mode():
                ids = model.generate(features.to(model.dtype), **ENGLISH, return_timestamps=True, **more)
            texts += processor.batch_decode(ids, skip_special_tokens=True)
        return Done("".join(texts))

    return transcribe


def pipeline(job: Job) -> Transcriber:
    """Return transformers' pipeline with chunks of 30 s and its usual strides, whose overlaps it cuts out."""
    import torch
    from transformers import pipeline as made

    pipe = made(
        "automatic-speech-recognition",
        model=str(job.model),
        dtype=getattr(torch, job.dtype),
        chunk_length_s=30,
        batch_size=job.batch_size,
        device="cpu",
    )
    generated, lengths = pipe.model.generate, []

    def counting(*args: Any, **options: Any) -> Any:
        out = generated(*args, **options)
        ids = out["sequences"] if isinstance(out, dict) else out
        lengths.extend((ids < PLAIN).sum(dim=1).tolist())
        return out

    pipe.model.generate = counting

    def transcribe(paths: Sequence[Path]) -> Done:
        lengths.clear()
        found = pipe([_samples(path) for path in paths], return_timestamps=True, generate_kwargs=ENGLISH)
        return Done("".join(each["text"] for each in found), lengths=[*lengths])

    return transcribe


def faster_whisper(job: Job, *, batched: bool) -> Transcriber:
    """Return faster-whisper, greedy, sequential or batched; batched with its VAD, as it wants."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    folder = str(job.model.with_name(f"{job.model.name}-ctranslate2"))
    model = WhisperModel(folder, device="cpu", compute_type=job.dtype, cpu_threads=job.threads)
    system: Any = BatchedInferencePipeline(model) if batched else model
    more: dict[str, Any] = {"batch_size": job.batch_size} if batched else {"condition_on_previous_text": False}

    def transcribe(paths: Sequence[Path]) -> Done:
        texts = []
        for path in paths:
            segments, _ = system.transcribe(str(path), language="en", beam_size=1, without_timestamps=False, **more)
            texts += [segment.text for segment in segments]
        return Done("".join(texts))

    return transcribe


def openai_whisper(job: Job) -> Transcriber:
    """Return openai-whisper, greedy, with its thresholds."""
    import torch
    import whisper
    from safetensors.torch import load_file
    from whisper.model import ModelDimensions

    config = config_of(job.model)
    sizes = (config["num_mel_bins"], 1500, config["d_model"], config["encoder_attention_heads"])
    deep = (config["encoder_layers"], config["vocab_size"], 448, config["d_model"], config["decoder_attention_heads"])
    model = whisper.model.Whisper(ModelDimensions(*sizes, *deep, config["decoder_layers"]))
    weights = {openai_name(name): weight for name, weight in load_file(job.model / "model.safetensors").items()}
    left = model.load_state_dict(weights, strict=False)
    if left.unexpected_keys or left.missing_keys:
        raise RuntimeError(f"weights don't fit: {left}")
    model.eval()

    def transcribe(paths: Sequence[Path]) -> Done:
        texts = []
        for path in paths:
            with torch.inference_mode():
                found = model.transcribe(_samples(path), **ENGLISH, condition_on_previous_text=False, fp16=False)
            texts.append(found["text"])
        return Done("".join(texts))

    return transcribe


def whisper_cpp(job: Job) -> Transcriber:
    """Return whisper.cpp through pywhispercpp."""
    from pywhispercpp.model import Model

    model = Model(
        str(job.model.with_name(f"{job.model.name}.ggml")),
        n_threads=job.threads,
        print_progress=False,
        redirect_whispercpp_logs_to=None,
    )

    def transcribe(paths: Sequence[Path]) -> Done:
        segments = [segment for path in paths for segment in model.transcribe(_samples(path), language="en")]
        return Done("".join(f" {segment.text}" for segment in segments))

    return transcribe


SYSTEMS = (
    System("ours", "float32", ours),
    System("ours", "bfloat16", ours),
    System("ours --short-windows", "float32", partial(ours, short=True)),
    System("ours --short-windows", "bfloat16", partial(ours, short=True)),
    System("generate, one by one", "float32", partial(generate, batched=False)),
    System("generate, batched", "float32", partial(generate, batched=True)),
    System("generate, batched, one call", "float32", partial(generate, batched=True, unique=True)),
    System("generate, batched, one call", "bfloat16", partial(generate, batched=True, unique=True)),
    System("pipeline", "float32", pipeline),
    System("pipeline", "bfloat16", pipeline),
    System("faster-whisper", "float32", partial(faster_whisper, batched=False)),
    System("faster-whisper", "int8", partial(faster_whisper, batched=False)),
    System("faster-whisper batched", "float32", partial(faster_whisper, batched=True)),
    System("faster-whisper batched", "int8", partial(faster_whisper, batched=True)),
    System("openai-whisper", "float32", openai_whisper),
    System("whisper.cpp", "float16", whisper_cpp),
)


def prepare(model: Path) -> None:
    """Write a checkpoint in the other systems' forms beside it."""
    from ctranslate2.converters import TransformersConverter

    files = ["tokenizer.json", "preprocessor_config.json"]
    TransformersConverter(str(model), copy_files=files).convert(str(model.with_name(f"{model.name}-ctranslate2")))
    write_ggml(model, model.with_name(f"{model.name}.ggml"))


def _listening() -> list[float]:
    """Let each call of the VAD add its seconds to a list."""
    from run_transcription.engines.silero import Silero

    spent: list[float] = []
    heard = Silero.__call__

    def timed(self: Silero, strips: Samples) -> Samples:
        began = time.perf_counter()
        found = heard(self, strips)
        spent.append(time.perf_counter() - began)
        return found

    Silero.__call__ = timed  # type: ignore[method-assign]
    return spent


def _samples(path: Path) -> Samples:
    with audio.open_recording(path) as reader:
        return np.concatenate([*reader.blocks()])


def _windows(path: Path) -> Iterator[Samples]:
    samples = _samples(path)
    for start in range(0, len(samples), WINDOW):
        yield samples[start : start + WINDOW]
