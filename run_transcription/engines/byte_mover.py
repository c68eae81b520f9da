"""Move the bytes of a file to where they are wanted: several threads read, check and hand on, piece by piece.

Standard library and xxhash alone, so that reading begins before torch is imported. Where the bytes go is a Lane's
matter: straight into one allocation here, through pinned memory to a GPU, or nowhere, which leaves them in the page
cache. A library that moves bytes faster would take the place of this module.
"""

from __future__ import annotations

import concurrent.futures
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

THREADS = 8  # enough requests on their way for a network disk; one that is near is full with two
PIECE = 4 << 20  # bytes read at once: large for a disk, small enough to be hashed from the processor's cache
CHUNK = 16 << 20  # bytes that one thread takes where the extent has no checksums that say another size


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file, and the xxh3-64 of each `chunk` of them; with no checksums nothing is checked."""

    path: Path
    start: int  # in the file
    size: int
    chunk: int = CHUNK
    checksums: tuple[str, ...] = ()


class Lane(Protocol):
    """The way of one thread's pieces to their destination; offsets count from the extent's start."""

    def slot(self, offset: int, length: int) -> memoryview:
        """Lend memory for a piece; waits until an earlier one has left it."""

    def put(self, offset: int, length: int) -> None:
        """Send the piece that now lies in the slot on its way."""

    def finish(self) -> None:
        """Wait until all that was sent has arrived."""


class Memory:
    """One fresh private allocation, into which pieces are read straight: any number of threads may share it.

    Huge pages where the system has them: to make 400,000 small ones takes longer than to fill them.
    """

    def __init__(self, size: int) -> None:
        """Reserve bytes; the system makes the pages when they are first written."""
        self.block = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._prefer_huge_pages()
        self._view = memoryview(self.block)

    def _prefer_huge_pages(self) -> None:
        try:
            self.block.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them; small ones do
            return

    def slot(self, offset: int, length: int) -> memoryview:
        """Lend the very place where the piece belongs."""
        return self._view[offset : offset + length]

    def put(self, offset: int, length: int) -> None:
        """Leave it there."""

    def finish(self) -> None:
        """Have nothing to wait for."""


class Nowhere:
    """Drops what is read, which leaves it in the page cache."""

    def __init__(self) -> None:
        """Take one reused buffer."""
        self._buffer = memoryview(bytearray(PIECE))

    def slot(self, offset: int, length: int) -> memoryview:  # noqa: ARG002 - a Lane's signature
        """Lend the buffer."""
        return self._buffer[:length]

    def put(self, offset: int, length: int) -> None:
        """Forget the piece."""

    def finish(self) -> None:
        """Have nothing to wait for."""


class Moving:
    """An extent on its way, one thread to a lane; ends with `wait`, or early with `stop`."""

    def __init__(self, file: int, extent: Extent, lanes: Sequence[Lane]) -> None:
        """Begin at once to read from an open file, which has to stay open until the end."""
        self._file = file
        self._extent = extent
        self._starts = iter(range(0, extent.size, extent.chunk))  # shared: next() of a range's iterator is atomic
        self._stopped = threading.Event()
        busy = min(len(lanes), -(-extent.size // extent.chunk))
        self._pool = ThreadPoolExecutor(max(busy, 1), thread_name_prefix="byte-mover")
        self._threads = [self._pool.submit(self._run, lane) for lane in lanes[:busy]]

    def wait(self) -> None:
        """Return when every byte has arrived and was found right.

        Raises TranscriptionError where one is not, or can't be read: then nothing that has arrived may be used.
        """
        concurrent.futures.wait(self._threads)
        self._pool.shutdown()
        errors = [error for thread in self._threads if (error := thread.exception()) is not None]
        self._threads = []  # an error's traceback holds the lanes, and with them all that they have brought
        if errors:
            raise errors[0].with_traceback(None)
        if self._stopped.is_set():
            raise TranscriptionError(f"{self._extent.path} was not read to its end")

    def stop(self) -> None:
        """Read no further, and return when no thread is left."""
        self._stopped.set()
        self._pool.shutdown()

    def _run(self, lane: Lane) -> None:
        whole = False
        try:
            for start in self._starts:
                if self._stopped.is_set():
                    break
                self._move(start, min(start + self._extent.chunk, self._extent.size), lane)
            whole = True
        finally:
            if not whole:
                self._stopped.set()  # the other threads need not go on
            lane.finish()

    def _move(self, start: int, end: int, lane: Lane) -> None:
        """Move one chunk, and take its checksum while its pieces are at hand."""
        check = self._check(start)
        for offset in range(start, end, PIECE):
            if self._stopped.is_set():
                return
            piece = lane.slot(offset, min(PIECE, end - offset))
            self._fill(piece, offset)
            check.update(piece)
            lane.put(offset, len(piece))
        if not check.right():
            raise TranscriptionError(f"the state in {self._extent.path} is damaged after byte {self._position(start)}")

    def _fill(self, piece: memoryview, offset: int) -> None:
        done = 0
        while done < len(piece):
            try:
                got = os.preadv(self._file, [piece[done:]], self._position(offset + done))
            except OSError as error:
                raise TranscriptionError(f"{self._extent.path} could not be read: {error.strerror}") from error
            if got == 0:
                raise TranscriptionError(f"{self._extent.path} ends early, at byte {self._position(offset + done)}")
            done += got

    def _position(self, offset: int) -> int:
        return self._extent.start + offset

    def _check(self, start: int) -> _Check | _NoCheck:
        sums = self._extent.checksums
        return _Check(sums[start // self._extent.chunk]) if sums else _NoCheck()


class _Check:
    """The xxh3-64 of pieces, against the one that they should have."""

    def __init__(self, wanted: str) -> None:
        import xxhash

        self._hash = xxhash.xxh3_64()
        self._wanted = wanted

    def update(self, piece: memoryview) -> None:
        self._hash.update(piece)

    def right(self) -> bool:
        return bool(self._hash.hexdigest() == self._wanted)


class _NoCheck:
    def update(self, piece: memoryview) -> None:
        pass

    def right(self) -> bool:
        return True


def read_ahead(paths: Sequence[Path], threads: int = THREADS) -> int:
    """Read files into the page cache, one after the other with several threads each, and return their bytes.

    What is not there, or may not be read, is passed over: reading ahead is only ever a help.
    """
    total = 0
    lanes = [Nowhere() for _ in range(threads)]
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            extent = Extent(path, 0, os.fstat(file).st_size)
            Moving(file, extent, lanes).wait()
            total += extent.size
        except TranscriptionError:
            continue
        finally:
            os.close(file)
    return total
