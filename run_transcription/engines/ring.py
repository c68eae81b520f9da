"""The way of bytes to a GPU: a few pieces of pinned memory, used again and again, and asynchronous copies from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from run_transcription.engines.byte_mover import PIECE, THREADS

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 2  # of each thread: while one is copied from, the other is read into


class Ring:
    """One thread's slots and its stream to the target; a `byte_mover.Lane`.

    With a target on the CPU the same turns are taken without stream and events, which is how they are tested.
    """

    def __init__(self, slots: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """Take slots, uint8 [PIECE] each, and the target, uint8 [bytes of the extent]."""
        self._slots = slots
        self._views = [slot.numpy().data for slot in slots]
        self._target = target
        self._stream = torch.cuda.Stream(target.device) if target.is_cuda else None  # type: ignore[no-untyped-call]
        # blocking: a thread that waits leaves its core to those that hash and import
        self._sent = [torch.cuda.Event(blocking=True) for _ in slots] if target.is_cuda else []  # type: ignore[no-untyped-call]
        self._turn = 0
        if self._stream is not None:  # the target's memory may still be in use by what was queued before
            self._stream.wait_stream(torch.cuda.current_stream(target.device))

    def slot(self, offset: int, length: int) -> memoryview:  # noqa: ARG002 - a Lane's signature
        """Lend the next slot, when the copy out of it has ended; an event never recorded has."""
        if self._sent:
            self._sent[self._turn].synchronize()
        return self._views[self._turn][:length]

    def put(self, offset: int, length: int) -> None:
        """Copy the slot to its place in the target, without waiting for it."""
        place, piece = self._target[offset : offset + length], self._slots[self._turn][:length]
        if self._stream is None:
            place.copy_(piece)
        else:
            with torch.cuda.stream(self._stream):
                place.copy_(piece, non_blocking=True)
                self._sent[self._turn].record(self._stream)
        self._turn = (self._turn + 1) % len(self._slots)

    def finish(self) -> None:
        """Wait for this thread's copies."""
        for event in self._sent:
            event.synchronize()


def rings(target: torch.Tensor, threads: int = THREADS) -> list[Ring]:
    """Return a ring for each thread, their slots being parts of one pinned allocation of 64 MiB."""
    memory = torch.empty(threads * SLOTS * PIECE, dtype=torch.uint8, pin_memory=target.is_cuda)
    return [Ring(list(slots), target) for slots in memory.view(threads, SLOTS, PIECE)]
