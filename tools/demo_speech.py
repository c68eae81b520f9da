"""Speech whose words and times are known: espeak-ng words, one clip each, placed on a time line.

Needs espeak-ng (Debian package of that name). Clips are kept in a cache folder, since making them takes minutes.
"""

from __future__ import annotations

import io
import random
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from demo_vocabulary import WORDS

Samples = npt.NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".train"  # clips and checkpoints: not part of the project
RATE = 16_000
VOICES = {
    "en": ("en-us", "en-gb", "en-gb-scotland", "en-029", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc"),
    "de": ("de",),
}
VARIANTS = (
    *("", "m1", "m2", "m3", "m5", "m6", "m7", "m8", "f1", "f2", "f4", "f5"),
    *("Annie", "Andy", "Max", "Michael", "Linda", "Steph"),
)
HELD_OUT_VOICES = {"en": ("en-gb-x-gbclan", "en-us"), "de": ("de",)}
HELD_OUT_VARIANTS = ("m4", "f3")
TAKES = {"en": 3, "de": 12}  # clips of each word by each speaker; German has one voice only
HELD_OUT_TAKES = {"en": 4, "de": 12}
SPEEDS = (120, 200)  # words a minute
PITCHES = (30, 75)  # espeak's scale
SPELLING = {"xray": "x-ray"}  # what espeak reads aloud
WORDS_IN_A_PHRASE = 8
PHRASE_PAUSE = 0.3  # seconds; a longer pause ends a phrase


@dataclass(frozen=True, slots=True)
class Spoken:
    """One word at its place: times in seconds from the start of the window."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Speech:
    """Samples [n] at 16 kHz, the phrases spoken in them, and their language (None: nobody speaks)."""

    samples: Samples
    phrases: tuple[tuple[Spoken, ...], ...]
    language: str | None

    @property
    def words(self) -> list[str]:
        """All words in order."""
        return [spoken.word for phrase in self.phrases for spoken in phrase]


@dataclass(frozen=True, slots=True)
class Style:
    """How a window sounds; ranges are uniform."""

    speakers: int = 1
    word_gap: tuple[float, float] = (0.02, 0.2)  # seconds
    phrase_gap: tuple[float, float] = (0.38, 2.0)
    phrase_words: tuple[int, int] = (1, WORDS_IN_A_PHRASE)
    first: tuple[float, float] = (0.0, 1.0)  # when the first word begins
    filled: float = 1.0  # share of the window in which words may begin
    gain: tuple[float, float] = (0.3, 1.1)
    snr: float | None = None  # dB; None: nearly silent background
    band: float | None = None  # Hz; above it nothing is left
    cut_words: bool = False  # the window's edges may cut a word


def say(word: str, voice: str, speed: int, pitch: int) -> Samples:
    """Return one spoken word, trimmed, with a peak of 0.5."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", SPELLING.get(word, word)]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[max(0, loud[0] - 160) : loud[-1] + 160]
    return np.asarray(samples / np.abs(samples).max() * 0.5, dtype=np.float32)


def through_mp3(samples: Samples, bit_rate: int = 32_000) -> Samples:
    """Return samples [n] as they come back from an mp3, at the same places."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono", bit_rate=bit_rate)
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        decoded = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
    head = samples[: 10 * RATE]
    size = 1 << (len(head) + 4096).bit_length()
    echo = np.fft.irfft(np.fft.rfft(decoded[: len(head) + 4096], size) * np.conj(np.fft.rfft(head, size)))
    lag = int(np.argmax(echo[:4096]))
    aligned = np.zeros_like(samples)
    part = decoded[lag : lag + len(samples)]
    aligned[: len(part)] = part
    return aligned


@dataclass(frozen=True, slots=True)
class Bank:
    """Clips by language, speaker and word: a speaker is a voice with its variant."""

    clips: dict[str, dict[str, dict[str, list[Samples]]]] = field(default_factory=dict)

    def speakers(self, language: str) -> list[str]:
        """Return the speakers of a language."""
        return list(self.clips[language])


def _speakers(language: str, *, held_out: bool) -> list[str]:
    """Return espeak voice names; the held-out ones share neither variant nor (for English) only voice with training."""
    voices = HELD_OUT_VOICES[language] if held_out else VOICES[language]
    variants = HELD_OUT_VARIANTS if held_out else VARIANTS
    return [f"{voice}+{variant}" if variant else voice for voice in voices for variant in variants]


def _record(language: str, speaker: str, takes: int, seed: int, *, mp3: bool) -> list[tuple[str, Samples]]:
    """Let one speaker say each word `takes` times; every third take goes through an mp3."""
    choose = random.Random(f"{language} {speaker} {seed}")
    clips = []
    for take in range(takes):
        spoken = [(w, say(w, speaker, choose.randint(*SPEEDS), choose.randint(*PITCHES))) for w in WORDS[language]]
        if mp3 and take % 3 == 2:
            gap = np.zeros(RATE // 10, np.float32)
            line = through_mp3(np.concatenate([part for _, clip in spoken for part in (clip, gap)]))
            at = 0
            for i, (word, clip) in enumerate(spoken):
                spoken[i] = (word, line[at : at + len(clip)].copy())
                at += len(clip) + len(gap)
        clips += spoken
    return clips


def bank(*, held_out: bool = False) -> Bank:
    """Return the clips of all speakers, from a cache in WORK where it exists (int16, 16 kHz).

    The held-out speakers are for measuring: training never hears their variants.
    """
    cache, takes, seed = (WORK / "held_out.npz", HELD_OUT_TAKES, 1) if held_out else (WORK / "speech.npz", TAKES, 0)
    if not cache.exists():
        jobs = [(lang, s) for lang in WORDS for s in _speakers(lang, held_out=held_out)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda job: _record(*job, takes[job[0]], seed, mp3=not held_out), jobs))
        arrays = {
            f"{lang}|{speaker}|{word}|{i}": (clip * 32767).astype(np.int16)
            for (lang, speaker), clips in zip(jobs, found, strict=True)
            for i, (word, clip) in enumerate(clips)
        }
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(".partial.npz")
        np.savez(partial, **arrays)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for one of the arrays
        partial.rename(cache)
    result = Bank()
    with np.load(cache) as arrays:
        for name in arrays.files:
            lang, speaker, word, _ = name.split("|")
            clips = result.clips.setdefault(lang, {}).setdefault(speaker, {}).setdefault(word, [])
            clips.append(arrays[name].astype(np.float32) / 32767)
    return result


def speak(clips: Bank, language: str, seconds: float, style: Style, choose: random.Random) -> Speech:
    """Place words on a window of `seconds`; a phrase ends at a pause of 0.3 s or after eight words."""
    samples = np.zeros(round(seconds * RATE), np.float32)
    speakers = choose.sample(clips.speakers(language), min(style.speakers, len(clips.speakers(language))))
    words = WORDS[language]
    phrases: list[tuple[Spoken, ...]] = []
    at = choose.uniform(*style.first)
    if style.cut_words:
        at -= 0.35
    while at < seconds * style.filled:
        speaker, gain, phrase = choose.choice(speakers), choose.uniform(*style.gain), []
        for _ in range(choose.randint(*style.phrase_words)):
            word = choose.choice(words)
            clip = choose.choice(clips.clips[language][speaker][word])
            spoken = _place(samples, gain * choose.uniform(0.8, 1.2) * clip, word, at, cut=style.cut_words)
            if spoken is None and at > 0:
                break
            phrase += [spoken] if spoken else []
            at += len(clip) / RATE + choose.uniform(*style.word_gap)
        if not phrase and at > 0:
            break
        phrases += [tuple(phrase)] if phrase else []
        at += choose.uniform(*style.phrase_gap)
    return Speech(samples, tuple(phrases), language if phrases else None)


def _place(samples: Samples, clip: Samples, word: str, at: float, *, cut: bool) -> Spoken | None:
    """Add a clip at `at` seconds; None where too little of it lies inside the window to be heard as a word."""
    first, last = round(at * RATE), round(at * RATE) + len(clip)
    inside = (max(first, 0), min(last, len(samples)))
    share = (inside[1] - inside[0]) / len(clip)
    if (share < 1 and not cut) or share <= 0:
        return None
    samples[inside[0] : inside[1]] += clip[inside[0] - first : inside[1] - first]
    return Spoken(word, inside[0] / RATE, inside[1] / RATE) if share > 0.6 else None


def white(n: int, noise: np.random.Generator) -> Samples:
    """Return white noise [n] with an RMS of 1."""
    return noise.standard_normal(n, dtype=np.float32)


def coloured(n: int, noise: np.random.Generator) -> Samples:
    """Return noise [n] whose spectrum falls with a random power of the frequency (pink to brown), RMS 1."""
    spectrum = np.fft.rfft(white(n, noise))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** noise.uniform(0.3, 1.2)
    result = np.fft.irfft(spectrum, n).astype(np.float32)
    return np.asarray(result / (result.std() + 1e-9), dtype=np.float32)


def tone(n: int, noise: np.random.Generator) -> Samples:
    """Return one to three sine tones [n], sometimes switched on and off as a dial tone is, RMS 1."""
    t = np.arange(n, dtype=np.float32) / RATE
    pitches = noise.uniform(80, 3500, noise.integers(1, 4))
    result = sum(np.sin(2 * np.pi * pitch * t + noise.uniform(0, 6)) for pitch in pitches)
    if noise.random() < 0.5:
        result = result * (np.mod(t, noise.uniform(0.4, 4)) < noise.uniform(0.2, 2))
    return np.asarray(result / (np.std(result) + 1e-9), dtype=np.float32)


def music(n: int, noise: np.random.Generator) -> Samples:
    """Return chords with decaying notes and drums [n], RMS 1."""
    result = np.zeros(n, np.float32)
    beat = round(RATE * noise.uniform(0.35, 0.7))
    t = np.arange(2 * beat, dtype=np.float32) / RATE
    root = noise.uniform(110, 260)
    for start in range(0, n, beat):
        chord = root * 2 ** (noise.choice([0, 5, 7, 9]) / 12)
        note = sum(
            np.sin(2 * np.pi * chord * step * over * t) / over for step in (1, 1.26, 1.5) for over in (1, 2, 3)
        ) * np.exp(-t * noise.uniform(1, 4))
        drum = white(len(t), noise) * np.exp(-t * 30) * 2
        part = (note + drum).astype(np.float32)[: n - start]
        result[start : start + len(part)] += part
    return np.asarray(result / (result.std() + 1e-9), dtype=np.float32)


BACKGROUNDS: tuple[Callable[[int, np.random.Generator], Samples], ...] = (white, coloured, tone, music)


def level(samples: Samples) -> float:
    """Return the RMS of the parts that are not silent; 0.1 where all is silent."""
    loud = np.abs(samples) > 1e-4
    return float(np.sqrt(np.mean(samples[loud] ** 2))) if loud.any() else 0.1


def band_limit(samples: Samples, hertz: float) -> Samples:
    """Return samples with nothing above `hertz`, as a telephone leaves them."""
    spectrum = np.fft.rfft(samples)
    spectrum[round(hertz * len(samples) / RATE) :] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def finish(speech: Speech, style: Style, background: Samples | None) -> Speech:
    """Add the background (RMS 1, [n]) at the style's signal-to-noise ratio, then limit the band."""
    samples = speech.samples
    if background is not None and style.snr is not None:
        samples = samples + background * np.float32(level(samples) * 10 ** (-style.snr / 20))
    if style.band is not None:
        samples = band_limit(samples, style.band)
    return replace(speech, samples=np.clip(samples, -1, 1))


def join(parts: Iterable[Speech]) -> Speech:
    """Return the parts one after the other."""
    samples, phrases, languages, at = [], [], set(), 0.0
    for part in parts:
        phrases += [tuple(Spoken(s.word, s.start + at, s.end + at) for s in phrase) for phrase in part.phrases]
        samples.append(part.samples)
        languages.add(part.language)
        at += len(part.samples) / RATE
    return Speech(np.concatenate(samples), tuple(phrases), languages.pop() if len(languages) == 1 else None)
