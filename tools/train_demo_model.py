"""Train the demo model: a small Whisper that reads call signs and digits, English and German.

usage: python tools/train_demo_model.py --minutes 120 [--resume]      (espeak-ng; two cores are enough, a GPU is faster)

Three things make it learn in an hour where plain training does not. The words' times are known, so every encoder frame has
a target of its own (which word, which place in its phrase); two heads of the cross-attention are told which frames each token is
about; and windows start short, at random places of the 30 s, so that all positions are learned cheaply.
"""

from __future__ import annotations

import json
import math
import queue
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import demo_speech
import demo_vocabulary
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "run_transcription" / "demo" / "model"
WORK = ROOT / ".train"
TAKES = {"en": 3, "de": 12}  # clips of each word by each speaker; German has one voice only
GRID = 10  # timestamps are trained in steps of 0.2 s (10 × 0.02 s)
FRAME = 0.02  # seconds of audio behind one encoder position
IGNORE = -100
GUIDED_HEADS = ((1, 0), (2, 0))  # (decoder layer, head): these become the alignment heads
VOCABULARY = demo_vocabulary.build()[1]
WORD_CLASS = {word: i + 1 for i, word in enumerate(demo_vocabulary.ALL_WORDS)}


@dataclass(frozen=True, slots=True)
class Stage:
    """From which share of the run on, windows of (seconds, batch) are drawn with these weights."""

    begin: float
    windows: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]


STAGES = (
    Stage(0.0, ((4, 24),), (1,)),
    Stage(0.06, ((6, 16), (12, 10)), (0.5, 0.5)),
    Stage(0.25, ((8, 16), (20, 8), (30, 6)), (0.3, 0.3, 0.4)),
    Stage(0.75, ((8, 16), (30, 8)), (0.2, 0.8)),
)


@dataclass(frozen=True, slots=True)
class Example:
    """One window with all its targets."""

    samples: demo_speech.Samples
    inputs: list[int]  # decoder input ids
    targets: list[int]  # next ids, IGNORE where nothing is to be learned
    spans: list[tuple[float, float] | None]  # seconds of audio that each target is about
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


def body(
    speech: demo_speech.Speech, offset: float, *, times: bool, english: bool
) -> tuple[list[int], list[tuple[float, float] | None]]:
    """Return a window's tokens after its prompt, and the seconds of audio that each is about."""
    ids: list[int] = []
    spans: list[tuple[float, float] | None] = []
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
    bare, times = choose.random() < 0.2, choose.random() < 0.88
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
    return Example(
        speech.samples, inputs, targets, [None] * (len(line) - 1 - len(ids)) + spans, frame_labels(speech)
    )


def frame_labels(speech: demo_speech.Speech) -> np.ndarray:
    """Return for every encoder position the word spoken there and its place in the phrase, 0 where nobody speaks."""
    labels = np.zeros((2, len(speech.samples) // 320), np.int64)
    for phrase in speech.phrases:
        for place, spoken in enumerate(phrase):
            labels[:, round(spoken.start / FRAME) : round(spoken.end / FRAME)] = [[WORD_CLASS[spoken.word]], [place + 1]]
    return labels


@dataclass(frozen=True, slots=True)
class Tensors:
    """A batch: samples [rows, n], inputs and targets [rows, tokens], spans [rows, tokens, 2] in frames, frames [rows, 2, positions]."""

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
    return Tensors(samples, inputs, targets, spans, torch.from_numpy(np.stack([r.frames for r in rows])), round(offset / FRAME))


def make_batch(clips: demo_speech.Bank, seconds: int, rows: int, choose: random.Random) -> Tensors:
    """Draw a batch of windows, all at one random place of the 30 s."""
    offset = choose.randint(0, round((30 - seconds) / 0.2)) * 0.2 if choose.random() < 0.8 else 0.0
    return collate([example(draw(clips, seconds, choose), offset, choose) for _ in range(rows)], offset)


class LogMel(torch.nn.Module):
    """Whisper's log-mel features: [rows, samples] → [rows, 80, frames]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", torch.tensor(np.asarray(WhisperFeatureExtractor(feature_size=80).mel_filters).T, dtype=torch.float32))
        self.register_buffer("window", torch.hann_window(400))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return log-mel features, each row relative to its own maximum."""
        power = torch.stft(samples, 400, 160, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        log = (self.filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4


def new_model() -> WhisperForConditionalGeneration:
    """Return the untrained model."""
    end = VOCABULARY.special["<|endoftext|>"]
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=VOCABULARY.size, num_mel_bins=80, d_model=128, encoder_layers=4, decoder_layers=3,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=512, decoder_ffn_dim=512,
            max_source_positions=1500, max_target_positions=448, pad_token_id=end, bos_token_id=end, eos_token_id=end,
            decoder_start_token_id=VOCABULARY.special["<|startoftranscript|>"], suppress_tokens=[], begin_suppress_tokens=[],
        )  # fmt: skip
    )


class Trainee(torch.nn.Module):
    """The model with the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel()
        self.whisper = new_model()
        self.word_head = torch.nn.Linear(128, len(WORD_CLASS) + 1)
        self.place_head = torch.nn.Linear(128, demo_speech.WORDS_IN_A_PHRASE + 1)
        self.positions = self.whisper.model.encoder.embed_positions.weight.data.clone()
        self.seen: dict[tuple[int, str], torch.Tensor] = {}
        for layer in {layer for layer, _ in GUIDED_HEADS}:
            attention = self.whisper.model.decoder.layers[layer].encoder_attn
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(self._keep(layer, name))

    def _keep(self, layer: int, name: str):  # type: ignore[no-untyped-def]  # torch's hook type has no public name
        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self.seen[layer, name] = output

        return hook

    def set_window(self, offset: int, length: int) -> None:
        """Let the encoder see positions [offset, offset + length)."""
        encoder = self.whisper.model.encoder
        encoder.max_source_positions = self.whisper.config.max_source_positions = length
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(self.positions[offset : offset + length], freeze=True)

    def guidance(self, spans: torch.Tensor) -> torch.Tensor:
        """Return the mean −log of the attention that guided heads give to the frames their token is about."""
        rows, tokens = (spans[..., 0] >= 0).nonzero(as_tuple=True)
        losses = []
        for layer, head in GUIDED_HEADS:
            q, k = (self.seen[layer, name][..., head * 64 : head * 64 + 64] for name in ("q_proj", "k_proj"))
            log = ((q / 8) @ k.transpose(1, 2)).float().log_softmax(-1)[rows, tokens]
            place = torch.arange(log.shape[1], device=log.device)
            inside = (place >= spans[rows, tokens, :1]) & (place < spans[rows, tokens, 1:])
            losses.append(-log.masked_fill(~inside, -1e4).logsumexp(-1).mean())
        return torch.stack(losses).mean() if len(rows) else spans.sum() * 0.0

    def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """Return the losses by name, and the logits [rows, tokens, vocabulary]."""
        self.set_window(batch.offset, batch.frames.shape[2])
        out = self.whisper(input_features=self.mel(batch.samples), decoder_input_ids=batch.inputs, use_cache=False)
        frames = out.encoder_last_hidden_state
        return {
            "text": cross_entropy(out.logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE),
            "word": cross_entropy(self.word_head(frames).float().flatten(0, 1), batch.frames[:, 0].flatten()),
            "place": cross_entropy(self.place_head(frames).float().flatten(0, 1), batch.frames[:, 1].flatten()),
            "guide": self.guidance(batch.spans),
            "logits": out.logits,
        }


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal by five Newton-Schulz steps (Jordan and others, 2024).

    torch.optim.Muon does the same in bfloat16, which a processor without native bfloat16 takes forty times as long for.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update each matrix; the update has the RMS that AdamW's usually has (0.2)."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, same in by_shape.items():
                moved = []
                for parameter in same:
                    kept = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    kept.lerp_(parameter.grad, 1 - group["momentum"])
                    moved.append(parameter.grad.lerp(kept, group["momentum"]))
                for parameter, update in zip(same, orthogonal(torch.stack(moved)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Return nearly orthogonal matrices [n, rows, columns] with the same singular vectors."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrices.shape[1] <= matrices.shape[2] else x.mT


def optimizers(model: Trainee, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for everything else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and ".layers." in name else others).append(parameter)
    return [
        Muon(matrices, lr=rate),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def batches(clips: demo_speech.Bank, progress: list[float], seed: int) -> Iterator[Tensors]:
    """Yield batches made ahead by a thread; `progress[0]` is the share of the run that is done."""
    ready: queue.Queue[Tensors] = queue.Queue(4)
    choose = random.Random(seed)

    def produce() -> None:
        while True:
            stage = [stage for stage in STAGES if stage.begin <= progress[0]][-1]
            ready.put(make_batch(clips, *choose.choices(stage.windows, stage.weights)[0], choose))

    threading.Thread(target=produce, daemon=True).start()
    while True:
        yield ready.get()


@torch.no_grad()
def check(model: Trainee, batch: Tensors) -> str:
    """Return teacher-forced accuracy on held-out windows: words, and times within 0.2 s."""
    model.eval()
    guess = model(batch)["logits"].argmax(-1)
    model.train()
    is_word = (batch.targets >= 256) & (batch.targets < VOCABULARY.special["<|endoftext|>"])
    is_time = batch.targets >= VOCABULARY.timestamp_begin
    words = (guess == batch.targets)[is_word].float().mean()
    times = ((guess - batch.targets).abs() <= GRID)[is_time].float().mean()
    return f"held out: words {words:.1%}, times {times:.1%}"


def export(model: Trainee, folder: Path) -> None:
    """Write the model as float16 with configuration, vocabulary and feature settings."""
    model.set_window(0, 1500)
    half = new_model()
    half.load_state_dict(model.whisper.state_dict())
    special = VOCABULARY.special
    half.generation_config = GenerationConfig(
        alignment_heads=[list(pair) for pair in GUIDED_HEADS],
        bos_token_id=special["<|endoftext|>"], eos_token_id=special["<|endoftext|>"], pad_token_id=special["<|endoftext|>"],
        decoder_start_token_id=special["<|startoftranscript|>"], is_multilingual=True, max_initial_timestamp_index=50, max_length=448,
        lang_to_id={f"<|{code}|>": special[f"<|{code}|>"] for code in ("en", "de")},
        task_to_id={task: special[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=special["<|notimestamps|>"], prev_sot_token_id=special["<|startofprev|>"],
        return_timestamps=False, suppress_tokens=[], begin_suppress_tokens=[],
    )  # fmt: skip
    half.half().save_pretrained(folder)
    demo_vocabulary.save(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)


def save(model: Trainee, elapsed: float, step: int) -> None:
    """Write the checkpoint, and the model as it would be shipped."""
    model.set_window(0, 1500)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "proj_out" not in name},
        WORK / "checkpoint.partial",
        {"elapsed": json.dumps(elapsed), "step": json.dumps(step)},
    )
    (WORK / "checkpoint.partial").replace(WORK / "checkpoint.safetensors")
    export(model, WORK / "model")


def learning_rate(done: float, step: int, peak: float) -> float:
    """Return the rate: 200 steps of warm-up, then a cosine down to 1 % of the peak at the end."""
    return peak * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


@click.command()
@click.option("--minutes", default=120.0, help="Length of the whole run; what a resumed run has behind it counts.")
@click.option("--rate", default=2e-3, help="Peak learning rate.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--begin", default=0.0, help="Share of the schedule at which the run begins (for tuning a trained model further).")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--threads", default=2)
@click.option("--seed", default=0)
def main(minutes: float, rate: float, resume: bool, begin: float, device: str, threads: int, seed: int) -> None:
    """Train, write a checkpoint every five minutes, and leave the finished model in .train/model."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    clips = demo_speech.bank(WORK / "speech.npz", takes=TAKES)
    held_out = demo_speech.bank(WORK / "held_out.npz", held_out=True, takes={"en": 4, "de": 12}, seed=1)
    test = make_batch(held_out, 30, 12, random.Random(99))
    model, elapsed, step = Trainee().to(device), 0.0, 0
    if resume:
        model.set_window(0, 1500)
        model.load_state_dict(load_file(WORK / "checkpoint.safetensors"), strict=False)
    steppers = optimizers(model, rate)
    progress, began, saved = [begin], time.monotonic(), time.monotonic()
    for batch in batches(clips, progress, random.SystemRandom().getrandbits(32) if resume else seed):
        elapsed = (time.monotonic() - began) / 60
        done = progress[0] = begin + (1 - begin) * elapsed / minutes
        losses = model(batch)
        helper = 1.0 if done < 0.5 else 0.3
        loss = losses["text"] + helper * (losses["word"] + 0.5 * losses["place"] + 0.3 * losses["guide"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = learning_rate(done, step, rate)
            stepper.step()
            stepper.zero_grad()
        step += 1
        if step % 50 == 0:
            text = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items() if value.ndim == 0)
            print(f"{elapsed:.1f} min, step {step}, {batch.frames.shape[2] // 50} s: {text}", flush=True)
        if step % 200 == 0:
            print(check(model, test), flush=True)
        if time.monotonic() - saved > 300 or done >= 1:
            save(model, elapsed, step)
            saved = time.monotonic()
        if done >= 1:
            sys.exit()


if __name__ == "__main__":
    main()
