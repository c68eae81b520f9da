"""Turn any media file into blocks of mono float32 samples at 16 kHz, on the time line of its container."""

from __future__ import annotations

import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np

from run_transcription.errors import Rejected
from run_transcription.records import SAMPLE_RATE, AudioFacts

if TYPE_CHECKING:
    from io import FileIO
    from pathlib import Path

    import numpy.typing as npt
    from av.container import InputContainer

    from run_transcription.records import Samples

BLOCK_SECONDS = 10.0  # decoded at once: 60 MB for 8 channels at 192 kHz
MAX_BLOCK = 30 * SAMPLE_RATE  # samples in the longest block handed out
MAX_SECONDS = 24 * 3600.0  # no recording is longer; a timestamp beyond it is damage
MIN_SAMPLES = SAMPLE_RATE // 100  # less than one feature frame (10 ms) is no audio
GAP_SECONDS = 0.1  # timestamps this far from the count of samples are a gap, nearer ones are rounding
CANCELLED = 0.01  # power of the mix over the mean power of its channels: -20 dB
LOUDEST = 1e6  # a float sample above it is no sound; its square would still fit into float32
FEWEST_BITS = 50.0  # a second; a claimed length that leaves less is absurd (Codec 2 needs 450)

PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"v=0", b"<smil", b"<asx", b"<playlist", b"<mpd", b"[reference]")
PICTURE_FORMATS = frozenset({"image2", "gif", "apng", "ico", "tty", "svg_pipe"})


@contextmanager
def open_recording(path: Path) -> Iterator[AudioReader]:
    """Open the sound of a media file; raise Rejected, with its reason, where there is none.

    Nothing but the file itself is ever opened: ffmpeg gets an open file instead of a name, and no
    protocol with which a playlist or a reference inside the file could open another one.
    """
    with _open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size == 0:
            raise Rejected("empty_file", "the file is empty")
        _refuse_playlist(file)
        with _open_container(file) as container:
            yield AudioReader(container, size)


class AudioReader:
    """One recording being decoded: iterate `blocks()` once, then `facts` is complete."""

    def __init__(self, container: InputContainer, size: int) -> None:
        """Choose the stream to decode; `size` is the file's, in bytes."""
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream) or stream.codec_context is None:
            raise _without_sound(container)
        codec = stream.codec_context
        self.seconds = 0.0  # spent decoding
        self._container = container
        self._stream = stream
        self._header = AudioFacts(0.0, container.format.name, codec.name, codec.sample_rate, codec.channels, size)
        self._claim = (container.duration or 0) / av.time_base  # seconds
        self._origin = (container.start_time or 0) / av.time_base  # container time at which the recording begins
        self._clock = 0.0  # seconds decoded, gaps included
        self._samples = 0  # handed out, at 16 kHz
        self._gaps = 0.0
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
            gaps=round(self._gaps, 3),
            replaced_samples=self._replaced,
            mix=chosen[0] if chosen else "average",
            warnings=tuple(text if n == 1 else f"{text} ({n} times)" for text, n in self._warnings.items()),
        )

    def blocks(self) -> Iterator[Samples]:
        """Yield float32 [samples], each at most 30 s; raise Rejected at the end of a file without a sound."""
        blocks = self._pieces()
        while True:
            start = time.perf_counter()
            block = next(blocks, None)
            self.seconds += time.perf_counter() - start
            if block is None:
                return
            yield block

    def _pieces(self) -> Iterator[Samples]:
        for block in self._resampled():
            for start in range(0, len(block), MAX_BLOCK):
                piece = block[start : start + MAX_BLOCK]
                self._samples += len(piece)
                if self._samples > MAX_SECONDS * SAMPLE_RATE:
                    raise Rejected("too_long", f"the recording is longer than {MAX_SECONDS / 3600:.0f} hours; split it")
                yield piece
        if self._samples < MIN_SAMPLES:
            raise Rejected("no_audio", f"the file holds no sound: {self._samples} samples could be decoded")
        self._compare_with_claim()

    def _resampled(self) -> Iterator[Samples]:
        """Bring each stretch of one rate to 16 kHz by a resampler of its own, whose memory joins the runs."""
        rate, resampler = SAMPLE_RATE, av.AudioResampler("flt", "mono", SAMPLE_RATE)
        for run in self._runs():
            if run.rate != rate:
                yield _through(resampler, None)
                rate, resampler = run.rate, av.AudioResampler("flt", "mono", SAMPLE_RATE)
            frame = av.AudioFrame.from_ndarray(self._mono(run.channels)[None], format="flt", layout="mono")
            frame.sample_rate = rate
            yield _through(resampler, frame)
        yield _through(resampler, None)  # without it the last milliseconds stay in the filter

    def _mono(self, channels: Samples) -> Samples:
        channels, replaced = without_nonsense(channels)
        self._replaced += replaced
        mono, mix = mixed(channels)
        self._mixes[mix] += 1
        return mono

    def _runs(self) -> Iterator[_Run]:
        """Yield decoded frames of one shape and rate in runs of about ten seconds, and silence for the gaps."""
        fifo, shape = av.AudioFifo(), None
        for frame in self._frames():
            gap = self._gap_before(frame)
            found = (frame.sample_rate, frame.layout.nb_channels, frame.format.name)
            if fifo.samples and (gap or found != shape or fifo.samples >= BLOCK_SECONDS * frame.sample_rate):
                yield _run(fifo)
            if found != shape:
                fifo, shape = av.AudioFifo(), found
            if gap:
                yield from _silence(gap, frame.sample_rate)
            self._clock += frame.samples / frame.sample_rate
            frame.pts = None  # the queue would refuse a jump
            fifo.write(frame)
        if fifo.samples:
            yield _run(fifo)

    def _gap_before(self, frame: av.AudioFrame) -> float:
        """Return the seconds that the container leaves silent before a frame."""
        if frame.time is None:
            return 0.0
        ahead = frame.time - self._origin - self._clock
        if abs(ahead) < GAP_SECONDS:
            return 0.0
        if ahead < 0.0 or self._clock + ahead > MAX_SECONDS:
            self._origin += ahead  # a clock set anew: what follows joins on here
            self._warnings[f"the timestamps jump {'back' if ahead < 0 else 'beyond a day'}"] += 1
            return 0.0
        self._gaps += ahead
        self._clock += ahead
        return ahead

    def _frames(self) -> Iterator[av.AudioFrame]:
        """Decode what can be decoded; damage is noted and passed over."""
        for packet in self._packets():
            try:
                yield from packet.decode() if packet else self._stream.codec_context.decode(None)
            except av.error.FFmpegError:
                self._warnings["a damaged packet was passed over"] += 1

    def _packets(self) -> Iterator[av.Packet[av.AudioStream] | None]:
        packets = self._container.demux(self._stream)
        try:
            yield from packets
        except av.error.FFmpegError as error:
            self._warnings[f"reading stopped at {self._clock:.2f} s: {error.strerror}"] += 1
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


def _through(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Samples:
    parts = [part.to_ndarray()[0] for part in resampler.resample(frame) if part is not None]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


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


def as_float(samples: npt.NDArray[Any]) -> Samples:
    """Return samples of any integer or float type as float32, integers scaled to [-1, 1)."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    numbers: npt.NDArray[Any] = samples.astype(np.float32 if half <= 2**15 else np.float64)
    return np.asarray(numbers / half - (samples.dtype.kind == "u"), np.float32)


def without_nonsense(samples: Samples) -> tuple[Samples, int]:
    """Set samples that are NaN, infinite or beyond all sound to zero, and count them."""
    nonsense = ~(np.abs(samples) <= LOUDEST)
    count = int(np.count_nonzero(nonsense))
    return (np.where(nonsense, np.float32(0), samples) if count else samples), count


def mixed(channels: Samples) -> tuple[Samples, str]:
    """Average float32 [channels, samples]; where the average has cancelled out, take the loudest channel.

    Returns the mono samples, and "average" or "channel N", counted from 1.
    """
    if len(channels) == 1:
        return np.ascontiguousarray(channels[0]), "average"
    mix = channels.mean(axis=0, dtype=np.float32)
    powers = [float(np.dot(channel, channel)) for channel in channels]
    if float(np.dot(mix, mix)) >= CANCELLED * sum(powers) / len(powers):
        return mix, "average"
    loudest = int(np.argmax(powers))
    return np.ascontiguousarray(channels[loudest]), f"channel {loudest + 1}"


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
    try:
        options = {"protocol_whitelist": "none"}
        return av.open(file, "r", container_options=options, metadata_errors="replace", buffer_size=1 << 18)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Rejected("not_audio", f"the file is not audio that can be decoded: {reason}") from error


def _without_sound(container: InputContainer) -> Rejected:
    name = container.format.name
    if container.streams.video and not name.endswith("_pipe") and name not in PICTURE_FORMATS:
        return Rejected("no_audio", f"the video ({name}) has no sound")
    return Rejected("not_audio", f"the file is no recording but {name}")
