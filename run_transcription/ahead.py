"""A recording that is fetched, decoded and listened to by a thread of its own, a block ahead of who reads it."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from run_transcription.channels import opened
from run_transcription.direct_transcribe import listen
from run_transcription.errors import BrokenOff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from run_transcription import audio
    from run_transcription.hearing import Heard
    from run_transcription.records import AudioFacts, Decoding, Samples

LOOK_SECONDS = 0.1  # between two looks whether anybody still reads


class ReadAhead:
    """Reads like an audio.AudioReader, and listens; what goes wrong in its thread is raised where it is read.

    One block, 65 MB for each channel and less for what is shorter than 17 minutes, is made before it is asked for.
    """

    def __init__(
        self,
        fetch: Callable[[Callable[[], None]], Path],
        beat: Callable[[], None],
        decoding: Callable[[], Decoding],
    ) -> None:
        """Begin at once: `fetch` brings the file, and calls what it is given at every step; so is `beat` called.

        How to listen to it is asked once it is there.
        """
        self.download_seconds = 0.0
        self.path: Path | None = None  # set once it is fetched
        self._fetch, self._beat, self._decoding = fetch, beat, decoding
        self._reader: audio.AudioReader | None = None
        self._error: BaseException | None = None
        self._heard: queue.SimpleQueue[tuple[Heard, ...] | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(1)  # blocks that may be made now
        self._opened, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the recording is open; raises what kept it from that."""
        self._opened.wait()
        if self._reader is None and self._error is not None:
            raise self._error

    @property
    def seconds(self) -> float:
        """Seconds spent decoding so far."""
        return self._reader.seconds if self._reader is not None else 0.0

    @property
    def duration_hint(self) -> float | None:
        """The length in seconds that the container claims, where it can be true."""
        return self._reader.duration_hint if self._reader is not None else None

    @property
    def facts(self) -> AudioFacts:
        """What decoding found; complete after the last block."""
        assert self._reader is not None  # noqa: S101 - there was a block
        return self._reader.facts

    @property
    def kept(self) -> tuple[int, ...] | None:
        """The channels that come out each by itself, counted from 0; None where they are mixed."""
        return self._reader.kept if self._reader is not None else None

    def heard(self) -> Iterator[tuple[Heard, ...]]:
        """Yield what `direct_transcribe.listen` does."""
        while (block := self._heard.get()) is not None:
            self._room.release()
            yield block
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread, wherever it is; the file is the caller's."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            began = time.perf_counter()
            self.path = self._fetch(self._step)
            self.download_seconds = time.perf_counter() - began
            decoding = self._decoding()
            with opened(self.path, decoding.channels, self._step) as self._reader:
                self._opened.set()
                heard = listen(self._blocks(self._reader), decoding, self._reader.kept)
                while self._has_room() and (block := next(heard, None)) is not None:
                    self._heard.put(block)
        except BaseException as error:  # noqa: BLE001 - it is raised in the reader's thread
            self._error = error
        finally:
            self._opened.set()
            self._heard.put(None)

    def _blocks(self, reader: audio.AudioReader) -> Iterator[Samples]:
        for block in reader.blocks():
            self._step()
            yield block

    def _step(self) -> None:
        if self._closed.is_set():
            raise BrokenOff("nobody wants the recording any more")
        self._beat()

    def _has_room(self) -> bool:
        """Wait until the block before was taken; False where nobody reads any more."""
        while not self._closed.is_set():
            if self._room.acquire(timeout=LOOK_SECONDS):
                return True
        return False
