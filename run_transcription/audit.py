"""What the audit of a transcript says; part of a transcript's record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Failing = Literal["compression_ratio", "logprob", "repetition", "truncated"]  # by which a row fails
Reason = Literal["speech_without_text", "low_confidence", "sides_of_a_seam_differ", "language_in_doubt", Failing]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Quality:
    """What the audit of a transcript found: speech that has text, speech that has none, and what is doubtful."""

    coverage: float | None = None  # share of the speech that has text; None: no speech was found
    uncovered: tuple[Span, ...] = ()
    retried_rows: int = 0
    confidence: float | None = None  # mean of the segments', weighted by their tokens; None without text
    needs_review: bool = False
    reasons: tuple[Reason, ...] = ()
    reduced_batch_size: int | None = None  # windows that fitted into memory at a time; None: as many as asked for
