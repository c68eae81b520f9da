"""In which language a recording is: a vote of its first windows with speech, each weighted by its probability."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from run_transcription.records import Chunk, Row

WINDOWS = 10  # that vote


def vote(voiced: Sequence[Row]) -> tuple[str | None, float]:
    """Return the language of rows with speech, of which the first ten vote, and its mean probability among those."""
    voters = voiced[:WINDOWS]
    votes: defaultdict[str | None, float] = defaultdict(float)
    for row in voters:
        votes[row.language] += row.language_probability
    winner = max(votes, key=lambda language: votes[language], default=None)
    return winner, votes[winner] / len(voters) if voters else 0.0


def at_changes(heard: Sequence[str | None]) -> set[int]:
    """Return the places of windows next to one in another language: one of the two may hold both.

    None stands for a window without speech, which is passed over.
    """
    spoken = [(place, language) for place, language in enumerate(heard) if language is not None]
    pairs = [(a, b) for (a, before), (b, after) in pairwise(spoken) if before != after]
    return {place for pair in pairs for place in pair}


def doubtful(rows: Mapping[Chunk, Row], language: str | None, threshold: float) -> Iterable[Chunk]:
    """Yield the chunks whose row is in another language than that, and not likely enough in it to keep it."""
    for chunk, row in rows.items():
        if language is not None and row.language != language and row.language_probability < threshold:
            yield chunk
