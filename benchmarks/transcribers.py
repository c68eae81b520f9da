"""The systems that quality.py compares: one class each, all with the same weights in float32."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from run_transcription import demo, direct_transcribe, optimized_loader
from run_transcription.audit import Quality
from run_transcription.records import SAMPLE_RATE, Decoding, ModelSpec

Samples = npt.NDArray[np.float32]
FOLDER = Path(demo.__file__).parent / "model"
ENGLISH = {"language": "en", "task": "transcribe"}


@dataclass(frozen=True, slots=True)
class Text:
    """What a system made of a recording: its text, the seconds of its segments, and where it cut the recording."""

    text: str
    spans: list[tuple[float, float]]
    seams: list[float]
    quality: Quality | None = None


Transcriber = Callable[[Samples], Text]


def ours(*, sequential: bool) -> Transcriber:
    """Return this program."""
    engine = optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu")).engine
    decoding = replace(Decoding(language="en"), sequential=sequential)

    def transcribe(samples: Samples) -> Text:
        done, _ = direct_transcribe.transcribe(iter([samples]), engine, decoding)
        seams = sorted({segment.seek / 100 for segment in done.segments} - {0.0})
        return Text(done.text, [(each.start, each.end) for each in done.segments], seams, done.quality)

    return transcribe


def long_form() -> Transcriber:
    """Return transformers' `generate` on the whole recording, as its documentation shows it."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(FOLDER, dtype="float32").eval()
    processor = WhisperProcessor.from_pretrained(FOLDER)
    least = 30 * SAMPLE_RATE

    def transcribe(samples: Samples) -> Text:
        padded = np.pad(samples, (0, max(0, least - len(samples))))
        taken = processor(
            padded,
            sampling_rate=SAMPLE_RATE,
            return_tensors="pt",
            truncation=False,
            padding="longest",
            return_attention_mask=True,
        )
        found = model.generate(**taken, **ENGLISH, return_timestamps=True, return_segments=True)["segments"][0]
        text = "".join(processor.tokenizer.decode(each["tokens"], skip_special_tokens=True) for each in found)
        return Text(text, [(float(each["start"]), float(each["end"])) for each in found], [])

    return transcribe


def pipeline() -> Transcriber:
    """Return transformers' pipeline with chunks of 30 s, which overlap by 5 s."""
    from transformers import pipeline as made

    pipe = made(
        "automatic-speech-recognition",
        model=str(FOLDER),
        dtype="float32",
        chunk_length_s=30,
        batch_size=8,
        device="cpu",
    )

    def transcribe(samples: Samples) -> Text:
        found = pipe(samples.copy(), return_timestamps=True, generate_kwargs=ENGLISH)
        spans = [each["timestamp"] for each in found["chunks"]]
        return Text(found["text"], [span for span in spans if None not in span], [])

    return transcribe


def faster_whisper(converted: Path, *, batched: bool) -> Transcriber:
    """Return faster-whisper on weights that CTranslate2's converter made, greedy as all others."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model = WhisperModel(str(converted), device="cpu", compute_type="float32")
    system = BatchedInferencePipeline(model) if batched else model
    more = {"batch_size": 8} if batched else {"condition_on_previous_text": False}  # as all others here

    def transcribe(samples: Samples) -> Text:
        found = [*system.transcribe(samples, beam_size=1, without_timestamps=False, **more)[0]]
        return Text("".join(each.text for each in found), [(each.start, each.end) for each in found], [])

    return transcribe


def systems(scratch: Path) -> dict[str, Callable[[], Transcriber]]:
    """Return all systems by name; the first one is this program."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers")
    return {
        "ours": lambda: ours(sequential=False),
        "ours --sequential": lambda: ours(sequential=True),
        "transformers long form": long_form,
        "transformers pipeline": pipeline,
        "faster-whisper": lambda: faster_whisper(converted(scratch), batched=False),
        "faster-whisper batched": lambda: faster_whisper(converted(scratch), batched=True),
    }


def converted(scratch: Path, dtype: str = "float32") -> Path:
    """Return the demo model as CTranslate2's own converter makes it."""
    folder = scratch / f"converted-{dtype}"
    if not folder.exists():
        from ctranslate2.converters import TransformersConverter

        files = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(FOLDER), copy_files=files).convert(str(folder), quantization=dtype)
    return folder


def same_tokens(scratch: Path, windows: list[Samples]) -> dict[str, int]:
    """Count windows whose greedy ids differ from plain `generate`'s and, with its bare prompt, from CTranslate2's."""
    import ctranslate2
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    from run_transcription.engines.torch_engine import TorchEngine  # noqa: F401 - loads torch's own names first

    engine = optimized_loader.load(ModelSpec("demo", dtype="float32", device="cpu")).engine
    rows = engine.transcribe(windows, Decoding(language="en")).rows
    model = WhisperForConditionalGeneration.from_pretrained(FOLDER, dtype="float32").eval()
    features = WhisperFeatureExtractor()(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    end = settings["eos_token_id"]
    prompt = [
        settings["decoder_start_token_id"],
        settings["lang_to_id"]["<|en|>"],
        settings["task_to_id"]["transcribe"],
    ]
    plain = model.generate(features, **ENGLISH, return_timestamps=True, force_unique_generate_call=True).tolist()
    theirs = ctranslate2.models.Whisper(str(converted(scratch)), device="cpu", compute_type="float32").generate(
        ctranslate2.StorageView.from_array(features.numpy()),
        [prompt] * len(windows),
        beam_size=1,
        max_length=448,
        suppress_blank=False,
        suppress_tokens=[],
        max_initial_timestamp_index=settings["max_initial_timestamp_index"],
    )
    others = {
        "transformers": [_until(ids, end, prompt) for ids in plain],
        "CTranslate2": [_until(each.sequences_ids[0], end, prompt) for each in theirs],
    }
    return {
        name: sum(list(row.tokens) != ids for row, ids in zip(rows, found, strict=True))
        for name, found in others.items()
    }


def _until(ids: list[int], end: int, prompt: list[int]) -> list[int]:
    ids = ids[len(prompt) :] if ids[: len(prompt)] == prompt else ids
    return ids[: ids.index(end)] if end in ids else ids
