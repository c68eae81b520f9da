"""Cut a stream of samples into chunks of at most 30 s, where it is quiet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from run_transcription.records import SAMPLE_RATE, Chunk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from run_transcription.records import Samples

HOP = SAMPLE_RATE // 100  # 10 ms: loudness is looked at in steps of it
PAUSE = 20  # hops: a pause between words lasts about 200 ms
NEARLY = 2.0  # of two places within 3 dB of the quietest the later one is taken: longer chunks, fewer of them
SILENCE = 1e-10  # power below -100 dB counts as none


def chunks(blocks: Iterable[Samples], max_seconds: float = 30.0) -> Iterator[tuple[Chunk, Samples]]:
    """Yield chunks and their samples; together they cover the recording without gap or overlap.

    Memory stays at one block and one chunk, and the chunks do not depend on how the samples were split into blocks.
    """
    limit = max(1, int(max_seconds * SAMPLE_RATE))
    buffer = np.empty(limit + 1, np.float32)  # the one sample more tells a full chunk from the recording's end
    start = filled = 0
    for block in blocks:
        taken = 0
        while taken < len(block):
            part = block[taken : taken + limit + 1 - filled]
            buffer[filled : filled + len(part)] = part
            taken, filled = taken + len(part), filled + len(part)
            if filled > limit:
                cut = quiet_cut(buffer[:limit])
                yield Chunk(start, start + cut), buffer[:cut].copy()
                buffer[: filled - cut] = buffer[cut:filled].copy()
                start, filled = start + cut, filled - cut
    if filled:
        yield Chunk(start, start + filled), buffer[:filled].copy()


def quiet_cut(samples: Samples) -> int:
    """Return where to cut float32 [samples]: the middle of the quietest 200 ms of the last third."""
    hops = len(samples) // 3 // HOP
    if hops < PAUSE:
        return len(samples)
    tail = samples[len(samples) - hops * HOP :].reshape(hops, HOP)
    power = np.einsum("ij,ij->i", tail, tail, dtype=np.float64) / HOP
    pauses = np.convolve(power, np.full(PAUSE, 1 / PAUSE), mode="valid")
    quiet = np.flatnonzero(pauses <= NEARLY * pauses.min() + SILENCE)
    return len(samples) - hops * HOP + (int(quiet[-1]) + PAUSE // 2) * HOP
