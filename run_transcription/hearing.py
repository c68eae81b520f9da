"""What is handed on before anything is decoded: speech that was found, and passages to decode. Places are samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from run_transcription.records import Chunk, Samples


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of speech: first sample, and the sample after the last; of any length."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A block of a recording that was listened to: where it begins, its samples, and the speech found in it.

    A region that goes on behind the block's end ends with it here, and goes on at the next block's start.
    """

    start: int
    samples: Samples
    speech: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk to decode: its samples, and the speech found in it; it may begin before the end of the one before."""

    chunk: Chunk
    samples: Samples
    speech: tuple[Region, ...]
