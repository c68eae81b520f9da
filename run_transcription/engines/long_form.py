"""Transformers' own long-form algorithm: one window after the other, each from the last timestamp on; the reference."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from transformers import WhisperFeatureExtractor

from run_transcription.batches import temperatures
from run_transcription.records import SAMPLE_RATE, Chunk, Decoding, Row

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from transformers import WhisperForConditionalGeneration

    from run_transcription.records import Samples

TOKEN_COMPRESSION_RATIO = 1.35  # transformers measures it on bytes of tokens, where openai's 2.4 is on text
SEED = 0

# it says that what is asked for below sets what is asked for below, too
logging.getLogger("transformers.models.whisper.generation_whisper").setLevel(logging.ERROR)


def passed(
    model: WhisperForConditionalGeneration,
    samples: Samples,
    decoding: Decoding,
    chosen: Mapping[str, object],
    suppressed: Sequence[int],
) -> tuple[tuple[Chunk, Row], ...]:
    """Decode float32 [samples] of any length; `chosen` is the prompt, its language and task, as `generate` takes them.

    Memory grows with the recording, since transformers keeps every score. The temperature of a segment and its
    probability of no speech are not told by it: they are 0 here.
    """
    extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    least = 2 * model.config.max_source_positions * extractor.hop_length
    padded = _padded(samples, least)
    taken = extractor(
        padded,
        sampling_rate=SAMPLE_RATE,
        truncation=False,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        found = model.generate(
            taken.input_features.to(model.device, model.dtype),
            attention_mask=taken.attention_mask.to(model.device),
            **chosen,
            return_timestamps=True,
            return_segments=True,
            return_dict_in_generate=True,
            condition_on_prev_tokens=decoding.condition_on_previous_text,
            suppress_tokens=[*suppressed],
            num_beams=1,
            temperature=tuple(temperatures(decoding)),
            compression_ratio_threshold=TOKEN_COMPRESSION_RATIO,
            logprob_threshold=decoding.logprob_threshold,
            no_speech_threshold=decoding.no_speech_threshold,
        )
    return tuple(_passed(found["segments"][0], len(samples) / SAMPLE_RATE))


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
