"""Recordings whose words and times are known, since they are put together from them: the scenes of quality.py."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import demo_speech
from demo_speech import RATE, Bank, Samples, Speech, Style

TALK = Style(speakers=2, snr=60, phrase_gap=(0.5, 2.5))
WITHOUT_PAUSE = Style(snr=60, word_gap=(0.0, 0.06), phrase_gap=(0.0, 0.06), phrase_words=(8, 8))
SHORT = Style(snr=60, first=(0.0, 0.3), phrase_words=(3, 6), phrase_gap=(5, 6))


@dataclass(frozen=True, slots=True)
class Scene:
    """A kind of recording: how many seconds each is long, how it is made, and how many of them there are."""

    name: str
    seconds: float
    make: Callable[[Bank, float, int], Speech]  # clips, seconds, seed
    recordings: int = 1


def spoken(style: Style, background: Callable[[int, np.random.Generator], Samples] = demo_speech.white) -> Callable:
    """Return a maker of speech in one style, over a background at the style's signal-to-noise ratio."""

    def make(clips: Bank, seconds: float, seed: int) -> Speech:
        speech = demo_speech.speak(clips, "en", seconds, style, random.Random(seed))
        return demo_speech.finish(speech, style, background(round(seconds * RATE), np.random.default_rng(seed)))

    return make


def silent(background: Callable[[int, np.random.Generator], Samples], gain: float) -> Callable:
    """Return a maker of recordings in which nobody speaks."""

    def make(_clips: Bank, seconds: float, seed: int) -> Speech:
        noise = background(round(seconds * RATE), np.random.default_rng(seed)) * np.float32(gain)
        return Speech(noise.astype(np.float32), (), None)

    return make


def with_gaps(clips: Bank, seconds: float, seed: int) -> Speech:
    """Return short turns of speech with 20 to 40 seconds of near silence between them."""
    choose, parts, length = random.Random(seed), [], 0.0
    while length < seconds:
        turn = spoken(replace(TALK, phrase_words=(3, 8)))(clips, choose.uniform(6, 12), choose.getrandbits(30))
        gap = silent(demo_speech.white, 1e-4)(clips, choose.uniform(20, 40), choose.getrandbits(30))
        parts += [turn, gap]
        length += (len(turn.samples) + len(gap.samples)) / RATE
    return demo_speech.join(parts)


# about a thousand words of each, so that one word is a tenth of a per cent; but one recording without a pause, in which
# no seam may cost a word, and forty short files
SPEECH = (
    Scene("conversation", 300, spoken(TALK), recordings=4),
    Scene("no pauses", 300, spoken(WITHOUT_PAUSE)),
    Scene("8 kHz", 180, spoken(replace(TALK, band=3600)), recordings=6),
    Scene("10 dB SNR", 180, spoken(replace(TALK, snr=10)), recordings=6),
    Scene("music under speech", 180, spoken(replace(TALK, snr=10), demo_speech.music), recordings=6),
    Scene("long gaps", 300, with_gaps, recordings=12),
    Scene("forty files of 5 s", 5, spoken(SHORT), recordings=40),
)
SILENCE = (
    Scene("silence", 60, silent(demo_speech.white, 0.0)),
    Scene("white noise", 60, silent(demo_speech.white, 0.05)),
    Scene("tones", 60, silent(demo_speech.tone, 0.1)),
    Scene("hold music", 60, silent(demo_speech.music, 0.1)),
)


def recordings(scene: Scene, clips: Bank, share: float = 1.0) -> list[Speech]:
    """Return the recordings of a scene; with a share below 1, fewer and shorter ones."""
    count = max(1, round(scene.recordings * share))
    seconds = max(min(40.0, scene.seconds), scene.seconds * share)
    return [scene.make(clips, seconds, 100 + number) for number in range(count)]


def small_bank(takes: int = 2) -> Bank:
    """Return clips of two speakers that training never heard, made in seconds."""
    bank = Bank()
    for speaker in ("en-gb-x-gbclan+m4", "en-us+f3"):
        clips = bank.clips.setdefault("en", {}).setdefault(speaker, {})
        choose = random.Random(speaker)
        for word in demo_speech.WORDS["en"]:
            pace = [(choose.randint(*demo_speech.SPEEDS), choose.randint(*demo_speech.PITCHES)) for _ in range(takes)]
            clips[word] = [demo_speech.say(word, speaker, *each) for each in pace]
    return bank
