"""audio: any media file becomes mono float32 at 16 kHz, and what is none is refused with its reason."""

from __future__ import annotations

import errno
import os
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from run_transcription import audio
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.records import SAMPLE_RATE, AudioFacts

RNG = np.random.default_rng(7)


def decoded(path: Path) -> tuple[np.ndarray, AudioFacts]:
    """Return all samples of a recording, and its facts."""
    with audio.open_recording(path) as reader:
        samples = np.concatenate([np.empty(0, np.float32), *reader.blocks()])
        return samples, reader.facts


def refusal(path: Path) -> Rejected:
    """Return the error with which a file is refused; it must be one line."""
    with pytest.raises(Rejected) as caught:
        decoded(path)
    assert "\n" not in str(caught.value)
    return caught.value


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """Return a sine as float32 [samples]."""
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pitch(samples: np.ndarray) -> float:
    """Return the strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


def rms(samples: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def encode(
    path: Path, codec: str, channels: np.ndarray, rate: int, *, starts: Sequence[float] = (0.0,), video: bool = False
) -> Path:
    """Encode float32 [channels, samples] with PyAV, once for each start in seconds of the container's clock."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout=layout) if channels.size else None
        if picture is not None:
            for number in range(10):
                image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
                image.pts = number
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        if sound is not None:
            for start in starts:
                for frame in frames_of(channels, rate, layout, sound):
                    frame.pts += round(start * rate)
                    container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return path


def frames_of(channels: np.ndarray, rate: int, layout: str, stream: Any) -> Iterator[av.AudioFrame]:
    """Yield frames in the format and of the size that an encoder wants."""
    whole = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
    whole.sample_rate, whole.pts = rate, 0
    context = stream.codec_context
    shaper = av.AudioResampler(context.format.name, layout, rate, frame_size=context.frame_size or 1024)
    position = 0
    for frame in [*shaper.resample(whole), *shaper.resample(None)]:
        frame.pts, frame.time_base = position, Fraction(1, rate)
        position += frame.samples
        yield frame


def retimed(path: Path, time_of: Callable[[int, int], int]) -> Path:
    """Change the times of an mkv's blocks: `time_of` gets a block's number and milliseconds, and gives others."""
    content = bytearray(path.read_bytes())
    for number, found in enumerate(re.finditer(rb"\xa3\x48\x04\x81", content)):  # blocks of 1024 samples, track 1
        place = slice(found.end(), found.end() + 2)
        content[place] = struct.pack(">h", time_of(number, struct.unpack(">h", content[place])[0]))
    path.write_bytes(content)
    return path


def wav_bytes(data: bytes, claimed: int | None = None, rate: int = SAMPLE_RATE, bits: int = 16) -> bytes:
    """Return a mono wav of integers whose header claims a size of its own."""
    size = len(data) if claimed is None else claimed
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, rate * bits // 8 % 2**32, bits // 8, bits)
    head = b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + b"WAVEfmt " + form
    return head + b"data" + struct.pack("<I", size) + data


CODECS = [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("m4a", "aac"), ("flac", "flac"), ("webm", "libopus")]


@pytest.mark.parametrize(("extension", "codec"), [*CODECS, ("ogg", "libopus"), ("ts", "aac"), ("mkv", "pcm_s16le")])
def test_any_codec_keeps_length_pitch_and_level(tmp_path: Path, extension: str, codec: str) -> None:
    """Each container and codec gives the same tone: as long, as high and as loud as it went in."""
    path = encode(tmp_path / f"a.{extension}", codec, np.stack([tone(3, 48_000)] * 2), 48_000)
    samples, facts = decoded(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) / SAMPLE_RATE - 3) < 0.07
    assert pitch(samples[8000:40_000]) == pytest.approx(440, abs=1)
    assert rms(samples[8000:40_000]) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)  # LAME takes 5 % off
    assert (facts.sample_rate, facts.channels, facts.mix) == (48_000, 2, "average")
    assert facts.duration == len(samples) / SAMPLE_RATE
    assert facts.size == path.stat().st_size
    assert facts.warnings == ()


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_no_sample_is_lost_in_resampling(tmp_path: Path, rate: int) -> None:
    """Every rate gives exactly 16,000 samples a second, and the last ones still sound."""
    soundfile.write(tmp_path / "a.wav", tone(2.5, rate, 1000), rate, subtype="FLOAT")
    samples, _ = decoded(tmp_path / "a.wav")
    assert len(samples) == 40_000
    assert rms(samples[-64:]) > 0.2


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_every_sample_type_has_one_scale(tmp_path: Path, subtype: str) -> None:
    """Integers of any width and floats come out at the level and offset they were written with."""
    wave = tone(1.0) + np.float32(0.25)
    soundfile.write(tmp_path / "a.wav", wave, SAMPLE_RATE, subtype=subtype)
    samples, _ = decoded(tmp_path / "a.wav")
    assert np.abs(samples - wave).max() < (0.02 if subtype in {"PCM_U8", "ULAW"} else 1e-4)


def test_integers_of_64_bits_have_that_scale_too(tmp_path: Path) -> None:
    """A wav of 64-bit integers, which numpy can't take from the decoder, comes out at its level and time."""
    wave = tone(3.0)
    (tmp_path / "a.wav").write_bytes(wav_bytes((wave * 2.0**63).astype("<i8").tobytes(), bits=64))
    samples, facts = decoded(tmp_path / "a.wav")
    np.testing.assert_allclose(samples, wave, atol=1e-6)
    assert (facts.codec, facts.gaps, facts.warnings) == ("pcm_s64le", 0, ())


def test_blocks_join_without_a_seam(tmp_path: Path) -> None:
    """A recording longer than a block is resampled as if it were one: the tone goes on over the joints."""
    soundfile.write(tmp_path / "a.wav", tone(34, 44_100, 100), 44_100, subtype="FLOAT")
    with audio.open_recording(tmp_path / "a.wav") as reader:
        assert reader.duration_hint == pytest.approx(34)
        blocks = list(reader.blocks())
        assert reader.seconds > 0
    assert len(blocks) > 2
    assert max(len(block) for block in blocks) <= 30 * SAMPLE_RATE
    assert np.abs(np.concatenate(blocks) - tone(34, SAMPLE_RATE, 100))[100:-100].max() < 1e-3


def test_channels_are_averaged(tmp_path: Path) -> None:
    """Two different channels give their mean, and two equal ones their own level."""
    left, right = tone(1, hertz=300), tone(1, hertz=700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), SAMPLE_RATE, subtype="FLOAT")
    samples, facts = decoded(tmp_path / "a.wav")
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)
    assert facts.mix == "average"


def test_opposite_phases_give_the_louder_channel(tmp_path: Path) -> None:
    """Where the mix cancels out, the louder channel is taken and the facts name it."""
    left = tone(1)
    soundfile.write(tmp_path / "a.wav", np.stack([-0.95 * left, left], axis=1), SAMPLE_RATE, subtype="FLOAT")
    samples, facts = decoded(tmp_path / "a.wav")
    np.testing.assert_allclose(samples, left, atol=1e-6)
    assert facts.mix == "channel 2"


def test_one_speaker_of_six_channels_is_no_cancellation(tmp_path: Path) -> None:
    """A film's centre channel alone is quieter in the mix, yet the mix is kept."""
    channels = np.zeros((16_000, 6), np.float32)
    channels[:, 2] = tone(1)
    soundfile.write(tmp_path / "a.wav", channels, SAMPLE_RATE, subtype="FLOAT")
    samples, facts = decoded(tmp_path / "a.wav")
    np.testing.assert_allclose(samples, tone(1) / 6, atol=1e-6)
    assert facts.mix == "average"


def test_nonsense_samples_become_zero_before_resampling(tmp_path: Path) -> None:
    """NaN, infinite and impossible samples are counted, and disturb nothing beyond their neighbours."""
    clean = tone(1, 44_100)
    broken = clean.astype(np.float64)
    broken[20_000:20_004] = [np.nan, np.inf, -np.inf, 1e30]
    soundfile.write(tmp_path / "clean.wav", clean, 44_100, subtype="DOUBLE")
    soundfile.write(tmp_path / "broken.wav", broken, 44_100, subtype="DOUBLE")
    samples, facts = decoded(tmp_path / "broken.wav")
    expected, clean_facts = decoded(tmp_path / "clean.wav")
    assert np.isfinite(samples).all()
    assert (facts.replaced_samples, clean_facts.replaced_samples) == (4, 0)
    place = 20_000 * SAMPLE_RATE // 44_100
    np.testing.assert_array_equal(samples[: place - 40], expected[: place - 40])
    np.testing.assert_array_equal(samples[place + 40 :], expected[place + 40 :])


def test_float_samples_above_one_are_kept(tmp_path: Path) -> None:
    """A float wav that goes to 3.0 is neither clipped nor scaled."""
    soundfile.write(tmp_path / "a.wav", tone(1, level=3.0), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(decoded(tmp_path / "a.wav")[0], tone(1, level=3.0), atol=1e-5)


def test_silence_is_a_recording(tmp_path: Path) -> None:
    """Digital silence on two channels is neither refused nor taken for cancelled channels."""
    soundfile.write(tmp_path / "a.wav", np.zeros((16_000, 2)), SAMPLE_RATE)
    samples, facts = decoded(tmp_path / "a.wav")
    assert len(samples) == SAMPLE_RATE
    assert not samples.any()
    assert facts.mix == "average"


def test_gap_in_the_stream_becomes_silence_of_its_length(tmp_path: Path) -> None:
    """A tone that goes on at 35 s by the container's clock is found there, with silence before it."""
    path = encode(tmp_path / "a.mkv", "pcm_s16le", tone(1.0)[None], SAMPLE_RATE, starts=(0.0, 35.0))
    with audio.open_recording(path) as reader:
        blocks = list(reader.blocks())
        facts = reader.facts
    samples = np.concatenate(blocks)
    assert len(samples) == 36 * SAMPLE_RATE
    assert rms(samples[:16_000]) > 0.3
    assert rms(samples[35 * SAMPLE_RATE :]) > 0.3
    assert not samples[16_000 : 35 * SAMPLE_RATE].any()
    assert facts.gaps == pytest.approx(34.0, abs=0.01)
    assert max(map(len, blocks)) <= 30 * SAMPLE_RATE


def test_sound_that_begins_after_its_video_keeps_its_place(tmp_path: Path) -> None:
    """The time line is the container's: sound from 2 s on has two seconds of silence before it."""
    path = encode(tmp_path / "a.mkv", "pcm_s16le", tone(1.0)[None], SAMPLE_RATE, starts=(2.0,), video=True)
    samples, _ = decoded(path)
    assert len(samples) == 3 * SAMPLE_RATE
    assert not samples[: 2 * SAMPLE_RATE].any()


def test_clock_of_the_container_need_not_start_at_zero(tmp_path: Path) -> None:
    """A stream cut out of a broadcast begins at some hour of its clock: that hour is no silence."""
    path = encode(tmp_path / "a.mkv", "pcm_s16le", tone(1.0)[None], SAMPLE_RATE, starts=(3600.0,))
    samples, facts = decoded(path)
    assert len(samples) == SAMPLE_RATE
    assert facts.gaps == 0


def test_timestamp_beyond_a_day_is_damage_and_no_silence(tmp_path: Path) -> None:
    """A clock that jumps by years does not make years of silence; the jump is a warning."""
    path = encode(tmp_path / "a.mkv", "pcm_s16le", tone(1.0)[None], SAMPLE_RATE, starts=(0.0, 1e8))
    samples, facts = decoded(path)
    assert len(samples) == 2 * SAMPLE_RATE
    assert any("jump beyond a day" in warning for warning in facts.warnings)


def test_clock_that_starts_again_joins_on(tmp_path: Path) -> None:
    """Two transport streams written one after the other: the second one follows the first."""
    one = encode(tmp_path / "a.ts", "aac", tone(2.0)[None], SAMPLE_RATE).read_bytes()
    (tmp_path / "b.ts").write_bytes(one + one)
    samples, facts = decoded(tmp_path / "b.ts")
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.3)
    assert any("jump back" in warning for warning in facts.warnings)


@pytest.mark.parametrize("milliseconds", [-1000, -300, 300, 1000])
def test_one_wrong_timestamp_moves_nothing(tmp_path: Path, milliseconds: int) -> None:
    """A single block whose time is wrong loses no sound, adds no silence, and leaves what follows in its place."""
    chirp = tone(3) * np.linspace(0, 1, 3 * SAMPLE_RATE, dtype=np.float32)
    path = encode(tmp_path / "a.mkv", "pcm_s16le", chirp[None], SAMPLE_RATE)
    samples, facts = decoded(retimed(path, lambda number, time: time + milliseconds * (number == 25)))
    np.testing.assert_allclose(samples, chirp, atol=1e-4)
    assert facts.gaps == 0
    assert facts.warnings == ("a wrong timestamp was passed over",)


@pytest.mark.parametrize("speed", [0.97, 1.03])
def test_clock_that_drifts_is_followed(tmp_path: Path, speed: float) -> None:
    """Where the container's clock is slower or faster than the samples, a sound stays within 0.1 s of its time."""
    clicks = np.zeros(300 * 1024, np.float32)  # 19.2 s, in whole blocks
    clicks[18 * SAMPLE_RATE :: 4000] = 0.9
    path = encode(tmp_path / "a.mkv", "pcm_s16le", clicks[None], SAMPLE_RATE)
    samples, facts = decoded(retimed(path, lambda number, time: time + round(number * 64 * (speed - 1))))
    assert np.flatnonzero(samples > 0.5)[0] / SAMPLE_RATE == pytest.approx(18 * speed, abs=0.15)
    assert len(samples) / SAMPLE_RATE == pytest.approx(19.2 * speed, abs=0.15)
    assert (facts.gaps > 0) == (speed > 1)
    assert any("overlap what precedes" in warning for warning in facts.warnings) == (speed < 1)


def test_rate_may_change_on_the_way(tmp_path: Path) -> None:
    """An mp3 of 44.1 kHz that goes on at 48 kHz keeps its pitch in both parts."""
    parts = [encode(tmp_path / f"{rate}.mp3", "libmp3lame", tone(2, rate)[None], rate) for rate in (44_100, 48_000)]
    (tmp_path / "a.mp3").write_bytes(b"".join(part.read_bytes() for part in parts))
    samples, _ = decoded(tmp_path / "a.mp3")
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.2)
    assert pitch(samples[4000:28_000]) == pytest.approx(440, abs=2)
    assert pitch(samples[-28_000:-4000]) == pytest.approx(440, abs=2)


def test_truncated_mp3_is_decoded_up_to_the_damage(tmp_path: Path) -> None:
    """Half of an mp3 gives half of its sound, and a warning that says how much was claimed."""
    whole = encode(tmp_path / "a.mp3", "libmp3lame", tone(8, 44_100)[None], 44_100).read_bytes()
    (tmp_path / "half.mp3").write_bytes(whole[: len(whole) // 2])
    samples, facts = decoded(tmp_path / "half.mp3")
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.3)
    assert pitch(samples[8000:48_000]) == pytest.approx(440, abs=1)
    assert any("claims 8.0" in warning for warning in facts.warnings)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_sound_shorter_than_its_video_is_no_damage(tmp_path: Path, extension: str) -> None:
    """A film whose sound ends before the picture is whole: the length of the sound is what counts."""
    codec = {"mp4": "aac", "mkv": "pcm_s16le"}[extension]
    path = encode(tmp_path / f"a.{extension}", codec, tone(0.3)[None], SAMPLE_RATE, video=True)
    with audio.open_recording(path) as reader:
        assert sum(map(len, reader.blocks())) / SAMPLE_RATE == pytest.approx(0.3, abs=0.1)
        assert reader.facts.warnings == ()


def test_damage_in_the_middle_is_passed_over(tmp_path: Path) -> None:
    """Noise in the midst of a flac costs what it hit; what follows is at its own time again."""
    content = bytearray(encode(tmp_path / "a.flac", "flac", tone(6)[None] + noise(6), SAMPLE_RATE).read_bytes())
    third = len(content) // 3
    content[third : third + 3000] = RNG.bytes(3000)
    (tmp_path / "b.flac").write_bytes(content)
    samples, facts = decoded(tmp_path / "b.flac")
    assert len(samples) == 6 * SAMPLE_RATE
    assert facts.gaps > 0
    assert pitch(samples[-32_000:]) == pytest.approx(440, abs=1)


def noise(seconds: float) -> np.ndarray:
    """Return quiet white noise, which no codec can make small."""
    return (0.01 * RNG.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def test_absurd_claims_of_length_are_not_believed(tmp_path: Path) -> None:
    """Headers that claim 37 hours or 50 days give the second that is there, and no length to show progress by."""
    (tmp_path / "a.wav").write_bytes(wav_bytes((tone(1) * 2**15).astype("<i2").tobytes(), claimed=2**32 - 100))
    assert len(decoded(tmp_path / "a.wav")[0]) == SAMPLE_RATE
    content = bytearray(encode(tmp_path / "a.flac", "flac", tone(1)[None], SAMPLE_RATE).read_bytes())
    content[21] |= 0x0F  # the number of samples: the last 36 bits of STREAMINFO's 8 bytes from byte 18
    content[22:26] = b"\xff\xff\xff\xff"
    (tmp_path / "b.flac").write_bytes(content)
    with audio.open_recording(tmp_path / "b.flac") as reader:
        assert reader.duration_hint is None
        assert sum(map(len, reader.blocks())) == SAMPLE_RATE
        assert any("claims 4294967" in warning for warning in reader.facts.warnings)


def test_a_recording_over_a_day_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Length is bounded by what was decoded, so that no small file can keep a worker for ever."""
    monkeypatch.setattr(audio, "MAX_SECONDS", 2.0)
    soundfile.write(tmp_path / "a.wav", tone(2.1), SAMPLE_RATE)
    assert refusal(tmp_path / "a.wav").code == "too_long"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b"The minutes of the meeting.\n" * 40, "not_audio"),
        (b"x", "not_audio"),
        (b"1\n00:00:00,000 --> 00:00:02,000\nA subtitle.\n\n", "not_audio"),
        (bytes(4096), "not_audio"),
        (np.random.default_rng(1).bytes(20_000), "not_audio"),
        (wav_bytes(b""), "no_audio"),
        (wav_bytes(b"\x01\x01", rate=44_100), "no_audio"),
        (wav_bytes(b"\x01\x01"), "no_audio"),
        (wav_bytes(b"")[:20], "not_audio"),
        (wav_bytes(bytes(4000), rate=2**31 - 1), "not_audio"),
        (wav_bytes(bytes(4000), rate=0), "not_audio"),
        (wav_bytes(bytes(4000), bits=48), "not_audio"),
    ],
    ids=[
        *("empty", "text", "letter", "subtitles", "zeros", "noise", "no samples", "one sample", "one at 16k", "cut"),
        *("rate of 2 GHz", "rate of 0 Hz", "integers of 48 bits"),
    ],
)
def test_what_holds_no_sound_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    """Files named .wav that are none, or hold nothing, are refused with a reason that tells which."""
    (tmp_path / "a.wav").write_bytes(content)
    assert refusal(tmp_path / "a.wav").code == code


def test_picture_named_wav_is_refused(tmp_path: Path) -> None:
    """A PNG is a video stream to ffmpeg; to us it is no recording."""
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 8, 8, "rgb24", Fraction(1, 1)
    image = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")
    (tmp_path / "a.wav").write_bytes(b"".join(map(bytes, [*encoder.encode(image), *encoder.encode(None)])))
    assert refusal(tmp_path / "a.wav").code == "not_audio"


def test_video_without_sound_is_refused(tmp_path: Path) -> None:
    """A video that has no audio stream says so."""
    path = encode(tmp_path / "a.mp4", "aac", np.empty((1, 0), np.float32), SAMPLE_RATE, video=True)
    error = refusal(path)
    assert error.code == "no_audio"
    assert "video" in str(error)


def test_missing_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    """No such file, a folder, a pipe that would wait for ever and a link to itself each get their reason at once."""
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "file").write_bytes(b"x")
    assert refusal(tmp_path / "none.wav").code == "not_found"
    assert refusal(tmp_path / "file" / "a.wav").code == "not_found"
    assert refusal(tmp_path / "nul\0.wav").code == "not_found"
    assert refusal(tmp_path).code == "not_readable"
    assert refusal(tmp_path / "pipe.wav").code == "not_readable"
    assert refusal(tmp_path / "loop.wav").code == "not_readable"
    assert refusal(tmp_path / ("long" * 100 + ".wav")).code == "not_readable"


def test_forbidden_file_is_not_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user may not read is told from one that is not there."""
    soundfile.write(tmp_path / "a.wav", tone(1), SAMPLE_RATE)
    if os.geteuid() == 0:  # root may read everything: the refusal has to be raised for it

        def forbid(*_arguments: object, **_options: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "open", forbid)
    else:
        (tmp_path / "a.wav").chmod(0)
    error = refusal(tmp_path / "a.wav")
    assert error.code == "not_readable"
    assert "Permission denied" in str(error)


class FailingDisk(FileIO):
    """A file whose disk fails after so many bytes."""

    sound = 0

    def readinto(self, memory: Any) -> int:
        """Read, or fail."""
        if self.tell() >= self.sound:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(memory)

    def read(self, size: int = -1) -> bytes:
        """Read, or fail."""
        if self.tell() >= self.sound:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@pytest.mark.parametrize("sound", [0, 4096, 300_000])
def test_failing_disk_is_not_the_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: int) -> None:
    """A read error is one line, and no refusal: the same file may be read when it is tried again."""
    soundfile.write(tmp_path / "a.wav", tone(60), SAMPLE_RATE)
    monkeypatch.setattr(audio, "_open_file", FailingDisk)
    monkeypatch.setattr(FailingDisk, "sound", sound)
    with pytest.raises(TranscriptionError, match="could not be read to its end: Input/output error") as caught:
        decoded(tmp_path / "a.wav")
    assert not isinstance(caught.value, Rejected)


NAMES = ["two words", "1+1=2", 'it\'s "so"', "line\nbreak", "Grüße", "🎧", "-o", "%03d", "file:a", "concat:a|b", "#1?"]


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_nothing(tmp_path: Path, name: str) -> None:
    """A name is a name, whatever a shell, a URL or ffmpeg would read into it."""
    path = tmp_path / f"{name}.wav"
    with path.open("wb") as file:
        soundfile.write(file, tone(1), SAMPLE_RATE, format="WAV")
    assert len(decoded(path)[0]) == SAMPLE_RATE


def test_name_and_tags_need_not_be_utf8(tmp_path: Path) -> None:
    """Latin-1 in the file's name and in its tags is no error."""
    tags = b"LIST" + struct.pack("<I", 4 + 8 + 6) + b"INFOINAM" + struct.pack("<I", 6) + b"caf\xe9\xff\0"
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    content = wav_bytes((tone(1) * 2**15).astype("<i2").tobytes())
    path.write_bytes(content[:36] + tags + content[36:])
    assert len(decoded(path)[0]) == SAMPLE_RATE


@pytest.fixture
def web() -> Iterator[tuple[str, list[str]]]:
    """A server on this machine that gives a wav to whoever asks, and the list of what was asked for."""
    asked: list[str] = []
    sound = wav_bytes((tone(1) * 2**15).astype("<i2").tobytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(sound)))
            self.end_headers()
            self.wfile.write(sound)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
    '<Period><AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>"
)
PLAIN = "[playlist]\nFile1={}\nNumberOfEntries=1\n"


@pytest.mark.parametrize("looks", [True, False], ids=["recognised", "not recognised"])
@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "list.wav"])
@pytest.mark.parametrize("playlist", [HLS, CONCAT, DASH, PLAIN], ids=["hls", "concat", "dash", "pls"])
def test_playlists_open_nothing(
    tmp_path: Path,
    web: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    playlist: str,
    name: str,
    looks: bool,  # noqa: FBT001
) -> None:
    """A playlist is refused, and even if its kind were not recognised, neither file nor URL in it is opened."""
    if not looks:
        monkeypatch.setattr(audio, "_refuse_playlist", lambda _file: None)
    soundfile.write(tmp_path / "secret.wav", tone(1), SAMPLE_RATE)
    monkeypatch.chdir(tmp_path)
    for target in ("secret.wav", str(tmp_path / "secret.wav"), f"file:{tmp_path}/secret.wav", f"{web[0]}/secret.wav"):
        (tmp_path / name).write_text(playlist.format(target))
        code = refusal(Path(name)).code
        assert code == "refused_playlist" if looks else code in {"refused_playlist", "not_audio"}
    assert web[1] == []


def test_the_server_of_these_tests_would_be_found(tmp_path: Path, web: tuple[str, list[str]]) -> None:
    """What the refusals prevent is possible: ffmpeg itself, given the playlist's name, opens the other file."""
    soundfile.write(tmp_path / "secret.wav", tone(1), SAMPLE_RATE)
    (tmp_path / "list.wav").write_text(CONCAT.format("secret.wav"))
    with av.open(str(tmp_path / "list.wav")) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == SAMPLE_RATE
    with av.open(f"{web[0]}/a.wav") as container:
        assert container.streams.audio
    assert web[1]
