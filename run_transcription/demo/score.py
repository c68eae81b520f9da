"""How far a transcript is from its reference, in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def aligned(reference: Sequence[str], heard: Sequence[str]) -> list[tuple[int | None, int | None]]:
    """Return which word is which, as pairs of places: None where a word was lost, or one was invented.

    Of all ways to pair them it is one with the fewest words replaced, lost or invented.
    """
    table = [[i + j for j in range(len(heard) + 1)] for i in range(len(reference) + 1)]
    for i, wanted in enumerate(reference, 1):
        for j, word in enumerate(heard, 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (wanted != word))
    pairs: list[tuple[int | None, int | None]] = []
    i, j = len(reference), len(heard)
    while i or j:
        if i and j and table[i][j] == table[i - 1][j - 1] + (reference[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            pairs.append((i, None))
        else:
            j -= 1
            pairs.append((None, j))
    return pairs[::-1]


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Return how many words were replaced, lost or invented, at the least (Levenshtein's distance)."""
    return sum(i is None or j is None or reference[i] != heard[j] for i, j in aligned(reference, heard))


def word_error_rate(reference: str, heard: str) -> float:
    """Return the share of the reference's words that went wrong; what is heard in silence counts as whole words."""
    wanted = words(reference)
    return word_errors(wanted, words(heard)) / max(len(wanted), 1)
