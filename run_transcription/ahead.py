"""A recording that is fetched and decoded by a thread of its own, a few minutes of sound ahead of who reads it."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from run_transcription.channels import opened
from run_transcription.errors import BrokenOff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from run_transcription import audio
    from run_transcription.decoding import Channels
    from run_transcription.records import AudioFacts, Samples

BLOCKS = 32  # decoded ahead: 10 s each as a rule, so 5 minutes and 20 MB; 60 MB at most
LOOK_SECONDS = 0.1  # between two looks whether anybody still reads


class ReadAhead:
    """Reads like an audio.AudioReader; what goes wrong in its thread is raised where it is read."""

    def __init__(
        self,
        fetch: Callable[[Callable[[], None]], Path],
        beat: Callable[[], None],
        channels: Callable[[], Channels] = lambda: "mix",
    ) -> None:
        """Begin at once: `fetch` brings the file, and calls what it is given at every step; so is `beat` called.

        What to do with its `channels` is asked once it is there.
        """
        self.download_seconds = 0.0
        self.path: Path | None = None  # set once it is fetched
        self._fetch, self._beat, self._channels = fetch, beat, channels
        self._reader: audio.AudioReader | None = None
        self._error: BaseException | None = None
        self._blocks: queue.Queue[Samples | None] = queue.Queue(BLOCKS)
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

    def blocks(self) -> Iterator[Samples]:
        """Yield float32 [samples], or [kept, samples], each at most 30 s."""
        while (block := self._blocks.get()) is not None:
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
            with opened(self.path, self._channels(), self._step) as self._reader:
                self._opened.set()
                for block in self._reader.blocks():
                    self._step()
                    if not self._put(block):
                        break
        except BaseException as error:  # noqa: BLE001 - it is raised in the reader's thread
            self._error = error
        finally:
            self._opened.set()
            self._put(None)

    def _step(self) -> None:
        if self._closed.is_set():
            raise BrokenOff("nobody wants the recording any more")
        self._beat()

    def _put(self, block: Samples | None) -> bool:
        """Return False where nobody reads any more."""
        while not self._closed.is_set():
            try:
                self._blocks.put(block, timeout=LOOK_SECONDS)
            except queue.Full:
                continue
            return True
        return False
