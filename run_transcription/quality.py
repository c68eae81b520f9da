"""Is a decoded row to be trusted: openai/whisper's measures and thresholds, and a look for loops."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from run_transcription.audit import Failing
    from run_transcription.records import Decoding, Row

LOOP_WORDS = 8  # words in all that are said again and again …
LOOP_TIMES = 4  # … at least so often


def compression_ratio(text: str) -> float:
    """Return the bytes of a text over its bytes compressed: above 2.4 it repeats itself; 0 without text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def is_silence(row: Row, decoding: Decoding) -> bool:
    """Tell whether a row's text is to be dropped: likely no speech, and the model unsure of what it wrote."""
    return row.no_speech_prob > decoding.no_speech_threshold and row.avg_logprob <= decoding.logprob_threshold


def failing(row: Row, text: str, decoding: Decoding) -> tuple[Failing, ...]:
    """Return by which measures a row is to be decoded again; none for silence, where another try writes more."""
    if is_silence(row, decoding):
        return ()
    measures: tuple[tuple[Failing, bool], ...] = (
        ("compression_ratio", compression_ratio(text.strip()) > decoding.compression_ratio_threshold),
        ("logprob", row.avg_logprob < decoding.logprob_threshold),
        ("repetition", is_loop(text.split())),
        ("truncated", not row.complete),
    )
    return tuple(name for name, fails in measures if fails)


def is_loop(words: Sequence[str]) -> bool:
    """Tell whether the same one to eight words stand there at least four times in a row, eight words in all."""
    for length in range(1, LOOP_WORDS + 1):
        same = 0
        for here, before in zip(words[length:], words, strict=False):
            same = same + 1 if here == before else 0
            if same + length >= max(LOOP_WORDS, LOOP_TIMES * length):
                return True
    return False


def better(first: Row, second: Row, faults: tuple[int, int]) -> Row:
    """Return the better of two attempts: the one with fewer faults, else the one that the model is surer of."""
    return min((faults[0], -first.avg_logprob, 0, first), (faults[1], -second.avg_logprob, 1, second))[3]
