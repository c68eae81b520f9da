"""Dynamic time warping of many rows at once: one pass over the diagonals, with all rows' cells in each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Costs = npt.NDArray[np.float32]

BOTH, DOWN, ALONG = range(3)  # to the next token in the next frame, to the next token, to the next frame


def starts(costs: Sequence[Costs]) -> list[list[int]]:
    """Return for each row the frame at which each token begins, on the cheapest way through its costs [tokens, frames].

    The way leads from the first token and frame to the last ones, and never back. The two for loops of the textbook
    would take a second for a window; along the diagonals each step is one operation for all tokens of all rows.
    """
    if not costs:
        return []
    moves = _moves(costs)
    return [_way_back(moves[:, number], *each.shape) for number, each in enumerate(costs)]


def _moves(costs: Sequence[Costs]) -> npt.NDArray[np.int8]:
    """Return the move that leads to each cell, int8 [diagonals, rows, tokens]."""
    tokens, frames = (max(each.shape[axis] for each in costs) for axis in (0, 1))
    skewed = np.full((tokens + frames - 1, len(costs), tokens), np.inf, np.float32)  # [diagonal, row, token]
    for number, each in enumerate(costs):
        for token, line in enumerate(each):
            skewed[token : token + len(line), number, token] = line
    moves = np.zeros(skewed.shape, np.int8)
    cheapest = np.full((3, len(costs), tokens + 1), np.inf, np.float32)  # of this diagonal and the two before it
    cheapest[0, :, 1] = skewed[0, :, 0]
    for diagonal in range(1, len(skewed)):
        last, one_before = cheapest[0], cheapest[1]
        ways = np.stack([one_before[:, :-1], last[:, :-1], last[:, 1:]])
        moves[diagonal] = ways.argmin(axis=0)
        new = np.full_like(last, np.inf)
        new[:, 1:] = skewed[diagonal] + ways.min(axis=0)
        cheapest = np.stack([new, last, one_before])
    return moves


def _way_back(moves: npt.NDArray[np.int8], tokens: int, frames: int) -> list[int]:
    found, token, frame = [0] * tokens, tokens - 1, frames - 1
    while token > 0:
        move = moves[token + frame, token]
        if move != ALONG:
            found[token] = frame
            token -= 1
        if move != DOWN:
            frame -= 1
    return found
