"""How engines say that memory has run out, each in its own words: as one of our errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from run_transcription.errors import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ROOM = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")  # in any of their errors


@contextmanager
def no_room_told(message: str) -> Iterator[None]:
    """Turn the errors by which torch, CUDA's libraries, CTranslate2 and numpy say so into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        no_room = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if no_room or any(words in str(error) for words in NO_ROOM):
            raise OutOfMemory(message) from error
        raise
