"""Whisper token ids → segments in recording time; pure, and shared by the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from run_transcription.records import SAMPLE_RATE, Chunk, Row, Segment, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMESTAMP_SECONDS = 0.02  # one timestamp token: two frames of 10 ms, as the encoder halves their number
FRAME_SAMPLES = 160  # 10 ms; `seek` is counted in these


def segments(row: Row, chunk: Chunk, tokenizer: Tokenizer, compression_ratio: float) -> list[Segment]:
    """Cut a row at its timestamps and put the pieces at recording time; pieces without text are left out.

    The rule is openai/whisper's: two timestamps in a row end one segment and begin the next; without such a pair the
    whole row is one segment, up to its last timestamp or to the end of the chunk. Two things differ, as a chunk is
    decoded once and never again from its last timestamp: text after the last pair is kept, up to the end of the chunk,
    and a row that is one segment begins at its own first timestamp, not at the beginning of the chunk.
    """
    found = (_segment(piece, row, chunk, tokenizer, compression_ratio) for piece in _pieces(row.tokens, tokenizer))
    return [segment for segment in found if segment.text.strip()]


def _pieces(tokens: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """Cut between the two timestamps of each pair."""
    times = [token >= tokenizer.timestamp_begin for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if times[i - 1] and times[i]]
    return [tuple(tokens[start:end]) for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]


def _segment(piece: tuple[int, ...], row: Row, chunk: Chunk, tokenizer: Tokenizer, compression_ratio: float) -> Segment:
    start, end = _span(piece, (chunk.end - chunk.start) / SAMPLE_RATE, tokenizer.timestamp_begin)
    offset = chunk.start / SAMPLE_RATE
    return Segment(
        start=round(offset + start, 3),
        end=round(offset + end, 3),
        text=tokenizer.decode([token for token in piece if token < tokenizer.end_of_text]),
        tokens=piece,
        seek=chunk.start // FRAME_SAMPLES,
        temperature=row.temperature,
        avg_logprob=row.avg_logprob,
        compression_ratio=compression_ratio,
        no_speech_prob=row.no_speech_prob,
        language=row.language,
    )


def _span(piece: Sequence[int], seconds: float, timestamp_begin: int) -> tuple[float, float]:
    """Return start and end within a chunk of so many seconds; what is missing is the chunk's own start or end.

    A window is padded to 30 s, so a timestamp may lie after the end of a shorter chunk: it is set to that end.
    """
    times = [min((token - timestamp_begin) * TIMESTAMP_SECONDS, seconds) for token in piece if token >= timestamp_begin]
    start = times[0] if times and piece[0] >= timestamp_begin else 0.0
    ended = times and piece[-1] >= timestamp_begin and times[-1] > 0
    return start, max(start, times[-1] if ended else seconds)
