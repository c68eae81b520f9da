"""How far a transcript is from its reference, in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.sub(r"[^\w\s]|_", "", text.lower()).split()


def word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Return how many words were replaced, lost or invented, at the least (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, wanted in enumerate(reference, 1):
        above, row = row, [i]
        for j, word in enumerate(heard, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (wanted != word)))
    return row[-1]


def word_error_rate(reference: str, heard: str) -> float:
    """Return the share of the reference's words that went wrong; what is heard in silence counts as whole words."""
    wanted = words(reference)
    return word_errors(wanted, words(heard)) / max(len(wanted), 1)
