"""Is a decoded row to be trusted: openai/whisper's measures and thresholds."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from run_transcription.records import Row

NO_SPEECH_THRESHOLD = 0.6
LOGPROB_THRESHOLD = -1.0


def compression_ratio(text: str) -> float:
    """Return the bytes of a text over its bytes compressed: above 2.4 it repeats itself; 0 without text."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data))


def is_silence(row: Row) -> bool:
    """Tell whether a row's text is to be dropped: likely no speech, and the model unsure of what it wrote."""
    return row.no_speech_prob > NO_SPEECH_THRESHOLD and row.avg_logprob <= LOGPROB_THRESHOLD
