"""Training examples for the demo model: windows of speech with the tokens, the frames and the places they stand for."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import demo_speech
import demo_vocabulary
import numpy as np
import torch

GRID = 10  # timestamps are trained in steps of 0.2 s (10 × 0.02 s)
FRAME = 0.02  # seconds of audio behind one encoder position
IGNORE = -100
VOCABULARY = demo_vocabulary.build()[1]
WORD_CLASS = {word: i + 1 for i, word in enumerate(demo_vocabulary.ALL_WORDS)}
Span = tuple[float, float] | None  # seconds of audio that a token is about


@dataclass(frozen=True, slots=True)
class Example:
    """One window with all its targets."""

    samples: demo_speech.Samples
    inputs: list[int]  # decoder input ids
    targets: list[int]  # next ids, IGNORE where nothing is to be learned
    spans: list[Span]  # seconds of audio that each target is about
    frames: np.ndarray  # [2, positions] int64: word class, place in its phrase


def style(choose: random.Random, seconds: float) -> demo_speech.Style:
    """Draw how a window sounds: pauses, runs without a gap, speakers, level, noise, band, edges."""
    continuous = choose.random() < 0.3
    loud = choose.uniform(0.15, 1.2)
    return demo_speech.Style(
        speakers=choose.choice((1, 1, 1, 2, 4)),
        word_gap=(0.0, 0.06) if continuous else choose.choice(((0.02, 0.2), (0.02, 0.12), (0.1, 0.22))),
        phrase_gap=(0.0, 0.1) if continuous else choose.choice(((0.38, 1.0), (0.38, 2.0), (1.0, 6.0))),
        phrase_words=(8, 8) if continuous else choose.choice(((1, 8), (1, 3), (4, 8))),
        first=choose.choice(((0.0, 0.3), (0.0, 1.0), (0.0, 0.4 * seconds))),
        filled=choose.choice((1.0, 1.0, 1.0, choose.uniform(0.1, 1.0))),
        gain=(loud * 0.6, loud * 1.1),
        snr=choose.choice((None, 60.0, choose.uniform(25, 45), choose.uniform(15, 30), choose.uniform(8, 20))),
        band=choose.uniform(3300, 4000) if choose.random() < 0.15 else None,
        cut_words=choose.random() < 0.12,
    )


def draw(clips: demo_speech.Bank, seconds: float, choose: random.Random) -> demo_speech.Speech:
    """Draw a window: speech of one language in some background, or a background alone."""
    noise = np.random.default_rng(choose.getrandbits(32))
    n, wanted = round(seconds * demo_speech.RATE), style(choose, seconds)
    background = choose.choices(demo_speech.BACKGROUNDS, (4, 3, 1, 2))[0]
    if choose.random() < 0.08:
        gain = choose.choice((0.0, 10 ** choose.uniform(-4, -0.7)))
        return demo_speech.Speech((background(n, noise) * np.float32(gain)).astype(np.float32), (), None)
    speech = demo_speech.speak(clips, "de" if choose.random() < 0.28 else "en", seconds, wanted, choose)
    return demo_speech.finish(speech, wanted, background(n, noise) if wanted.snr is not None else None)


def time_id(seconds: float, offset: float) -> int:
    """Return the timestamp token nearest to a time on the training grid."""
    return VOCABULARY.timestamp_begin + round((seconds + offset) / (GRID * FRAME)) * GRID


def body(speech: demo_speech.Speech, offset: float, *, times: bool, english: bool) -> tuple[list[int], list[Span]]:
    """Return a window's tokens after its prompt, and the seconds of audio that each is about."""
    ids: list[int] = []
    spans: list[Span] = []
    last = time_id(0, offset)
    for phrase in speech.phrases:
        words = [demo_vocabulary.TRANSLATION[s.word] if english and speech.language == "de" else s.word for s in phrase]
        start, end = max(time_id(phrase[0].start, offset), last), time_id(phrase[-1].end, offset)
        last = max(end, start + GRID)
        ids += [*([start] if times else []), *(VOCABULARY.word[word] for word in words), *([last] if times else [])]
        first, final = phrase[0].start, phrase[-1].end
        spans += [(first - 0.06, first + 0.2)] if times else []
        spans += [(s.start, s.end) for s in phrase]
        spans += [(final - 0.2, final + 0.06)] if times else []
    if not speech.phrases and times:
        ids, spans = [time_id(0, offset)], [None]
    return [*ids, VOCABULARY.special["<|endoftext|>"]], [*spans, None]


def example(speech: demo_speech.Speech, offset: float, choose: random.Random) -> Example:
    """Give a window its prompt (one in five is the bare start), targets and frame labels."""
    special = VOCABULARY.special
    bare, times = choose.random() < 0.2, choose.random() < 0.8
    task = "<|translate|>" if choose.random() < (0.35 if speech.language == "de" else 0.05) else "<|transcribe|>"
    language = special[f"<|{speech.language or choose.choice(('en', 'de'))}|>"]
    prompt = [special["<|startoftranscript|>"], *([] if bare else [language, special[task]])]
    prompt += [] if times else [special["<|notimestamps|>"]]
    ids, spans = body(speech, offset, times=times, english=task == "<|translate|>" and not bare)
    before = []
    if choose.random() < 0.1:
        words = choose.choices(list(VOCABULARY.word.values()), k=choose.randint(1, 20))
        before = [special["<|startofprev|>"], *words]
    line = [*before, *prompt, *ids]
    inputs, targets = line[:-1], line[1:]
    targets[: len(before) + len(prompt) - 1] = [IGNORE] * (len(before) + len(prompt) - 1)
    if speech.language is None:
        targets[len(before)] = special["<|nospeech|>"]
    elif not bare:
        targets[len(before)] = language
    first = len(before) + len(prompt)
    if times and speech.phrases and choose.random() < 0.15:  # generate forces the first timestamp to at most 1 s
        inputs[first] = min(inputs[first], time_id(choose.uniform(0, 1), offset))
    return Example(speech.samples, inputs, targets, [None] * (len(line) - 1 - len(ids)) + spans, frame_labels(speech))


def frame_labels(speech: demo_speech.Speech) -> np.ndarray:
    """Return for every encoder position the word spoken there and its place in the phrase, 0 where nobody speaks."""
    labels = np.zeros((2, len(speech.samples) // 320), np.int64)
    for phrase in speech.phrases:
        for place, spoken in enumerate(phrase):
            first, last = round(spoken.start / FRAME), round(spoken.end / FRAME)
            labels[:, first:last] = [[WORD_CLASS[spoken.word]], [place + 1]]
    return labels


@dataclass(frozen=True, slots=True)
class Tensors:
    """A batch: samples [rows, n], inputs and targets [rows, tokens], spans [rows, tokens, 2] in encoder positions.

    frames [rows, 2, positions]: word class, place in its phrase.
    """

    samples: torch.Tensor
    inputs: torch.Tensor
    targets: torch.Tensor
    spans: torch.Tensor
    frames: torch.Tensor
    offset: int  # encoder position of the first frame


def collate(rows: list[Example], offset: float) -> Tensors:
    """Pad the rows on the right with end of text."""
    longest = max(len(row.inputs) for row in rows)
    inputs = torch.full((len(rows), longest), VOCABULARY.special["<|endoftext|>"])
    targets = torch.full((len(rows), longest), IGNORE)
    spans = torch.full((len(rows), longest, 2), -1)
    for i, row in enumerate(rows):
        inputs[i, : len(row.inputs)] = torch.tensor(row.inputs)
        targets[i, : len(row.targets)] = torch.tensor(row.targets)
        for k, span in enumerate(row.spans):
            if span:
                spans[i, k] = torch.tensor([max(0, math.floor(span[0] / FRAME)), math.ceil(span[1] / FRAME)])
    samples = torch.from_numpy(np.stack([row.samples for row in rows]))
    frames = torch.from_numpy(np.stack([row.frames for row in rows]))
    return Tensors(samples, inputs, targets, spans, frames, round(offset / FRAME))


def make_batch(clips: demo_speech.Bank, seconds: int, rows: int, choose: random.Random) -> Tensors:
    """Draw a batch of windows, all at one random place of the 30 s."""
    offset = choose.randint(0, round((30 - seconds) / 0.2)) * 0.2 if choose.random() < 0.8 else 0.0
    return collate([example(draw(clips, seconds, choose), offset, choose) for _ in range(rows)], offset)
