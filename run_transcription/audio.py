"""Turn any media file into blocks of mono float32 samples at 16 kHz, on the time line of its container."""

from __future__ import annotations

import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np

from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.records import SAMPLE_RATE, AudioFacts
from run_transcription.resampling import Resampler
from run_transcription.samples import as_float, mixed, separate, without_nonsense
from run_transcription.stream_clock import MAX_SECONDS, StreamClock, counted

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    from av.container import InputContainer

    from run_transcription.records import Samples

BLOCK_SECONDS = 10.0  # decoded at once: 60 MB for 8 channels at 192 kHz
MAX_BLOCK = 30 * SAMPLE_RATE  # samples in the longest block handed out
MAX_RATE = 6_000_000  # Hz; DSD512 has 22.6 MHz of single bits, which are decoded at an eighth
MIN_SAMPLES = SAMPLE_RATE // 100  # less than one feature frame (10 ms) is no audio
FEWEST_BITS = 50.0  # a second; a claimed length that leaves less is absurd (Codec 2 needs 450)

PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"v=0", b"<smil", b"<asx", b"<playlist", b"<mpd", b"[reference]")
PICTURE_FORMATS = frozenset({"image2", "gif", "apng", "ico", "tty", "svg_pipe"})


@contextmanager
def open_recording(path: Path, kept: Sequence[int] | None = None) -> Iterator[AudioReader]:
    """Open the sound of a media file; raise Rejected, with its reason, where there is none.

    Its channels are mixed, or those `kept` come out each by itself, counted from 0.

    Nothing but the file itself is ever opened: ffmpeg gets an open file instead of a name, and no
    protocol with which a playlist or a reference inside the file could open another one.
    """
    with _open_file(path) as file:
        with _errors_told():
            size = file.seek(0, 2)
            file.seek(0)
            if size == 0:
                raise Rejected("empty_file", "the file is empty")
            _refuse_playlist(file)
            container = _open_container(file)
        with container:
            yield AudioReader(container, size, kept)


class AudioReader:
    """One recording being decoded: iterate `blocks()` once, then `facts` is complete."""

    def __init__(self, container: InputContainer, size: int, kept: Sequence[int] | None = None) -> None:
        """Choose the stream to decode; `size` is the file's, in bytes; `kept` is as in `open_recording`."""
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
            raise _without_sound(container)
        codec = stream.codec_context
        _check_rate(codec.sample_rate)
        self.seconds = 0.0  # spent decoding
        self.kept = None if kept is None else tuple(kept)
        self._container = container
        self._stream = stream
        self._header = AudioFacts(0.0, container.format.name, codec.name, codec.sample_rate, codec.channels, size)
        origin = (container.start_time or 0) / av.time_base  # container time at which the recording begins
        self._claim = _claimed_end(stream, container) - origin
        self._clock = StreamClock(origin)
        self._samples = 0  # handed out, at 16 kHz
        self._replaced = 0
        self._mixes: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()

    @property
    def duration_hint(self) -> float | None:
        """The length in seconds that the container claims, where it can be true."""
        possible = 0.0 < self._claim <= MAX_SECONDS and self._header.size * 8 / self._claim >= FEWEST_BITS
        return self._claim if possible else None

    @property
    def facts(self) -> AudioFacts:
        """What is known so far; complete after the last block."""
        chosen = [mix for mix, _ in self._mixes.most_common() if mix != "average"]
        return replace(
            self._header,
            duration=self._samples / SAMPLE_RATE,
            gaps=round(self._clock.gaps, 3),
            replaced_samples=self._replaced,
            mix=chosen[0] if chosen else "average",
            warnings=(*self._clock.warnings, *counted(self._warnings)),
        )

    def blocks(self) -> Iterator[Samples]:
        """Yield float32 [samples], or [kept, samples], at most 30 s each; raise Rejected where there was no sound."""
        blocks = self._pieces()
        while True:
            start = time.perf_counter()
            with _errors_told():
                block = next(blocks, None)
            self.seconds += time.perf_counter() - start
            if block is None:
                return
            yield block

    def _pieces(self) -> Iterator[Samples]:
        for block in self._resampled():
            for start in range(0, block.shape[1], MAX_BLOCK):
                piece = block[:, start : start + MAX_BLOCK]
                self._samples += piece.shape[1]
                if self._samples > MAX_SECONDS * SAMPLE_RATE:
                    raise Rejected("too_long", f"the recording is longer than {MAX_SECONDS / 3600:.0f} hours; split it")
                yield piece[0] if self.kept is None else piece
        if self._samples < MIN_SAMPLES:
            raise Rejected("no_audio", f"the file holds no sound: {self._samples} samples could be decoded")
        self._compare_with_claim()

    def _resampled(self) -> Iterator[Samples]:
        """Bring each stretch of one rate to 16 kHz by a resampler of its own, whose memory joins the runs."""
        count = 1 if self.kept is None else len(self.kept)
        resampler = Resampler(SAMPLE_RATE, count)
        for run in self._runs():
            if run.rate != resampler.rate:
                yield resampler.end()
                resampler = Resampler(run.rate, count)
            yield resampler(self._chosen(run.channels))
        yield resampler.end()

    def _chosen(self, channels: Samples) -> Samples:
        """Return the mix [1, samples], or the channels that are kept."""
        channels, replaced = without_nonsense(channels)
        self._replaced += replaced
        mono, mix = mixed(channels) if self.kept is None else (None, "split")
        self._mixes[mix] += 1
        return separate(channels, self.kept or ()) if mono is None else mono[None]

    def _runs(self) -> Iterator[_Run]:
        """Yield decoded frames of one shape and rate in runs of about ten seconds, and silence for the gaps."""
        fifo, shape = av.AudioFifo(), None
        for frame, shift in self._placed_frames():
            found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if fifo.samples and (shift or found != shape or fifo.samples >= BLOCK_SECONDS * frame.sample_rate):
                yield _run(fifo)
            if found != shape:
                fifo, shape = av.AudioFifo(), found
            yield from _silence(max(shift, 0.0), frame.sample_rate)
            frame.pts = None  # the queue would refuse a jump
            fifo.write(frame)
            if shift < 0.0:
                fifo.read(min(round(-shift * frame.sample_rate), frame.samples))
        if fifo.samples:
            yield _run(fifo)

    def _placed_frames(self) -> Iterator[tuple[av.AudioFrame, float]]:
        """Yield each frame and the seconds of silence before it, or, negative, those to drop from its beginning."""
        frames = self._frames()
        frame = next(frames, None)
        while frame is not None:
            following = next(frames, None)
            length = frame.samples / frame.sample_rate
            yield frame, self._clock.place(frame.time, length, following.time if following else None)
            frame = following

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Decode what can be decoded; damage is noted and passed over."""
        for packet in self._packets():
            try:
                frames = packet.decode() if packet else self._stream.codec_context.decode(None)
                yield from map(_readable, frames)
            except av.error.FFmpegError:
                self._warnings["a damaged packet was passed over"] += 1

    def _packets(self) -> Iterator[av.Packet[av.AudioStream] | None]:
        packets = self._container.demux(self._stream)
        try:
            yield from packets
        except av.error.FFmpegError as error:
            self._warnings[f"reading stopped at {self._clock.seconds:.2f} s: {error.strerror}"] += 1
            yield None  # lets the decoder give what it still holds

    def _compare_with_claim(self) -> None:
        found = self._samples / SAMPLE_RATE
        if self._claim > 1.02 * found + 0.5:
            self._warnings[f"the file claims {self._claim:.2f} s, {found:.2f} s could be decoded"] += 1


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive samples of one rate, float32 [channels, samples]."""

    rate: int
    channels: Samples


def _run(fifo: av.AudioFifo) -> _Run:
    """Take everything out of a queue of frames."""
    frame = fifo.read()
    if frame is None:
        raise AssertionError("an empty queue is never read")
    samples = frame.to_ndarray()  # [channels, samples], or interleaved in one row
    if frame.format.is_packed:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    return _Run(frame.sample_rate, as_float(samples))


def _silence(seconds: float, rate: int) -> Iterator[_Run]:
    """Yield silence of a length, in runs of bounded size."""
    length, step = round(seconds * rate), round(BLOCK_SECONDS * rate)
    for start in range(0, length, step):
        yield _Run(rate, np.zeros((1, min(step, length - start)), np.float32))


def _open_file(path: Path) -> FileIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
            raise Rejected("not_readable", "it is a folder or a device, not a file")
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise Rejected("not_found", "there is no such file") from error
    except OSError as error:
        raise Rejected("not_readable", f"the file cannot be read: {error.strerror}") from error
    # ffmpeg reads patterns and protocols out of names: it is told the extension only.
    file.name = f"recording{path.suffix}"
    return file


def _refuse_playlist(file: FileIO) -> None:
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    file.seek(0)
    if head.startswith(PLAYLISTS) or (head.startswith(b"<?xml") and any(word in head for word in PLAYLISTS[4:8])):
        raise Rejected("refused_playlist", "it is a playlist, and only files that hold the sound themselves are opened")


def _open_container(file: FileIO) -> InputContainer:
    options = {"protocol_whitelist": "none"}
    return av.open(file, "r", container_options=options, metadata_errors="replace", buffer_size=1 << 18)


@contextmanager
def _errors_told() -> Iterator[None]:
    """Turn what ffmpeg and the system say into errors of this program: a file is to blame, a disk may recover."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Rejected("not_audio", f"the file is not audio that can be decoded: {reason}") from error
    except OSError as error:
        raise TranscriptionError(f"the file could not be read to its end: {error.strerror or error}") from error


def _check_rate(rate: int) -> None:
    if not 0 < rate <= MAX_RATE:
        raise Rejected("not_audio", f"the file is not audio that can be decoded: {rate} Hz is no rate of sound")


def _claimed_end(stream: av.AudioStream, container: InputContainer) -> float:
    """Return the container time at which the sound is said to end; 0 where only the length of a video is known."""
    if stream.duration and stream.time_base:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    alone = len(container.streams) == 1
    return ((container.start_time or 0) + (container.duration or 0)) / av.time_base if alone else 0.0


def _readable(frame: av.AudioFrame) -> av.AudioFrame:
    """Return a frame in a format that numpy has: 64-bit integers become doubles. Raise Rejected at an absurd rate."""
    _check_rate(frame.sample_rate)
    if not frame.format.name.startswith("s64"):
        return frame
    (converted,) = av.AudioResampler("dbl").resample(frame)
    return converted


def _without_sound(container: InputContainer) -> Rejected:
    name = container.format.name
    if container.streams.video and not name.endswith("_pipe") and name not in PICTURE_FORMATS:
        return Rejected("no_audio", f"the video ({name}) has no sound")
    return Rejected("not_audio", f"the file is no recording but {name}")
