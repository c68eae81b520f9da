"""What the machine could do at best: a model's operations and bytes over the rates that this machine reaches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fixed_tokens import PROMPT, SHAPES

FRAMES, WINDOW_SECONDS, VOCABULARY, BYTES = 1500, 30.0, 51_865, {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured in the same run, with the same threads."""

    operations: float  # a second, of a large matrix product
    bytes: float  # a second, read and written by a large copy


@dataclass(frozen=True, slots=True)
class Work:
    """What a window asks for."""

    shape: str
    tokens: int
    batch: int  # windows that are decoded together


def measure(dtype: str, threads: int) -> Rates:
    """Take the best of five of each."""
    import torch

    torch.set_num_threads(threads)
    size = 2048
    left = torch.randn(size, size).to(getattr(torch, dtype))
    block = torch.empty(256 << 20, dtype=torch.uint8).fill_(1)
    there = torch.empty_like(block)
    product = min(_seconds(lambda: left @ left) for _ in range(5))
    copy = min(_seconds(lambda: there.copy_(block)) for _ in range(5))
    return Rates(2 * size**3 / product, 2 * block.nbytes / copy)


def window_seconds(work: Work, dtype: str, rates: Rates) -> tuple[float, float]:
    """Return the least seconds of encoder and decoder for one window of 30 s."""
    width, encoder, decoder, _, mels, _ = SHAPES[work.shape]
    linear = 2 * FRAMES * 12 * width**2  # four projections, and a feed-forward of four widths
    attention = 2 * 2 * FRAMES**2 * width  # q·k and p·v
    convolutions = 2 * 3 * width * (2 * FRAMES * mels + FRAMES * width)
    cross = 2 * FRAMES * 2 * width**2 * decoder  # keys and values, once a window
    encode = (encoder * (linear + attention) + convolutions + cross) / rates.operations
    steps = PROMPT + work.tokens  # the prompt costs about what a token costs
    weights = decoder * 14 * width**2 + VOCABULARY * width  # self, cross (q and o), feed-forward; the tied embedding
    cache = decoder * 2 * width * (FRAMES + steps / 2)  # keys and values that each step reads, a row
    by_bytes = (weights / work.batch + cache) * BYTES[dtype] / rates.bytes
    by_operations = 2 * (weights + cache) / rates.operations
    return encode, steps * max(by_bytes, by_operations)


def rtfx(work: Work, dtype: str, rates: Rates, seconds: float = WINDOW_SECONDS) -> float:
    """Return seconds of sound a second, if nothing but encoder and decoder took time; `seconds` fill each window."""
    return seconds / sum(window_seconds(work, dtype, rates))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
