"""Transformers' own long-form algorithm: one window after the other, each from the last timestamp on; the reference."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import WhisperFeatureExtractor

from run_transcription.batches import temperatures
from run_transcription.records import SAMPLE_RATE, Chunk, Decoding, Row

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from transformers import WhisperForConditionalGeneration

    from run_transcription.records import Samples

TOKEN_COMPRESSION_RATIO = 1.35  # transformers measures it on bytes of tokens, where openai's 2.4 is on text
FRAME_SECONDS = 0.01
SEED = 0

# it says that what is asked for below sets what is asked for below, too
logging.getLogger("transformers.models.whisper.generation_whisper").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole recording as `generate` takes it: features [1, mels, frames of 10 ms] and their mask; its seconds."""

    features: torch.Tensor
    mask: torch.Tensor
    seconds: float


def whole(model: WhisperForConditionalGeneration, samples: Samples) -> Whole:
    """Return float32 [samples] of any length as one recording for a model, on its device."""
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    least = 2 * model.config.max_source_positions * extractor.hop_length
    taken = extractor(
        _padded(samples, least),
        sampling_rate=SAMPLE_RATE,
        truncation=False,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    features, mask = taken.input_features.to(model.device, model.dtype), taken.attention_mask.to(model.device)
    return Whole(features, mask, len(samples) / SAMPLE_RATE)


def passed(
    model: WhisperForConditionalGeneration,
    recording: Whole,
    decoding: Decoding,
    chosen: Mapping[str, object],
    reached: Callable[[float], None],
) -> tuple[tuple[Chunk, Row], ...]:
    """Decode a recording; `chosen` is the prompt, its language, its task and tokens never written, for `generate`.

    Before each window `reached` is told the second where it begins. Memory grows with the recording, since transformers
    keeps every score. The temperature of a segment and its probability of no speech are not told: they are 0 here.
    """
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        found = model.generate(
            recording.features,
            attention_mask=recording.mask,
            monitor_progress=lambda frames: reached(frames[0, 0].item() * FRAME_SECONDS),
            **chosen,
            return_timestamps=True,
            return_segments=True,
            return_dict_in_generate=True,
            condition_on_prev_tokens=decoding.condition_on_previous_text,
            num_beams=1,
            temperature=tuple(temperatures(decoding)),
            compression_ratio_threshold=TOKEN_COMPRESSION_RATIO,
            logprob_threshold=decoding.logprob_threshold,
            no_speech_threshold=decoding.no_speech_threshold,
        )
    return tuple(_passed(found["segments"][0], recording.seconds))


def _padded(samples: Samples, least: int) -> Samples:
    import numpy as np

    return np.pad(samples, (0, max(0, least - len(samples))))


def _passed(segments: list[dict[str, Any]], duration: float) -> list[tuple[Chunk, Row]]:
    found, begins = [], {id(segment["result"]): segment["idxs"][0] for segment in reversed(segments)}
    for segment in segments:
        ids = segment["tokens"].tolist()
        first = segment["idxs"][0] - begins[id(segment["result"])]
        logprobs = tuple(
            round(score.float().log_softmax(-1)[token].item(), 4)
            for score, token in zip(segment["result"]["scores"][first:], ids, strict=False)
        )
        mean = sum(logprobs) / len(logprobs) if logprobs else -math.inf
        start, end = (round(min(float(segment[side]), duration) * SAMPLE_RATE) for side in ("start", "end"))
        found.append((Chunk(start, max(start, end)), Row(tuple(ids), None, 0.0, 0.0, mean, logprobs=logprobs)))
    return found
