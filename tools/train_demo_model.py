"""Train the demo model: a small Whisper that reads call signs and digits, English and German.

usage: python tools/train_demo_model.py --minutes 120 [--resume]      (espeak-ng; two cores are enough)

Three things make it learn in an hour where plain training does not. The words' times are known, so every encoder frame
has a target of its own (which word, which place in its phrase); two heads of the cross-attention are told which frames
each token is about; and windows start short, at random places of the 30 s, so that all positions are learned cheaply.
"""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import click
import demo_speech
import torch
from demo_examples import GRID, VOCABULARY, Tensors, make_batch
from demo_network import FOLDER, Trainee, export
from demo_speech import WORK
from muon import Muon
from safetensors.torch import load_file, save_file

CHECKPOINT_SECONDS = 300


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


def train_step(
    model: Trainee, steppers: list[torch.optim.Optimizer], batch: Tensors, done: float, rate: float
) -> dict[str, torch.Tensor]:
    """Take one step and return the losses; the helpers' losses count less in the second half."""
    losses = model(batch)
    helper = 1.0 if done < 0.5 else 0.3
    (losses["text"] + helper * (losses["word"] + 0.5 * losses["place"] + 0.3 * losses["guide"])).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = rate
        stepper.step()
        stepper.zero_grad()
    return losses


def save(model: Trainee) -> None:
    """Write the checkpoint, and the model as it would be shipped."""
    model.set_window(0, 1500)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items() if "proj_out" not in name},
        WORK / "checkpoint.partial",
    )
    (WORK / "checkpoint.partial").replace(WORK / "checkpoint.safetensors")
    export(model, WORK / "model")


def restore(model: Trainee) -> None:
    """Take up the last checkpoint, else the shipped weights: what only training needs is soon learned anew."""
    checkpoint = WORK / "checkpoint.safetensors"
    if checkpoint.exists():
        weights = load_file(checkpoint)
    else:
        shipped = load_file(FOLDER / "model.safetensors")
        weights = {f"whisper.{name}": tensor.float() for name, tensor in shipped.items()}
    model.set_window(0, 1500)
    _, unknown = model.load_state_dict(weights, strict=False)
    if unknown:
        raise click.ClickException(f"the checkpoint has other parts than this network: {', '.join(unknown)}")


def learning_rate(done: float, step: int, peak: float) -> float:
    """Return the rate: 100 steps of warm-up, then a cosine down to 1 % of the peak at the end."""
    return peak * min(1.0, step / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))


@click.command()
@click.option("--minutes", default=120.0, help="Length of this run.")
@click.option("--rate", default=2e-3, help="Peak learning rate.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, or the shipped weights.")
@click.option("--begin", default=0.0, help="Share of the schedule to begin at: 0.8 tunes a trained model.")
@click.option("--threads", default=2)
@click.option("--seed", default=0)
def main(*, minutes: float, rate: float, resume: bool, begin: float, threads: int, seed: int) -> None:  # noqa: PLR0913 - one parameter for each option
    """Train, write a checkpoint every five minutes, and leave the finished model in .train/model."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    test = make_batch(demo_speech.bank(held_out=True), 30, 12, random.Random(99))
    model = Trainee()
    if resume:
        restore(model)
    steppers = optimizers(model, rate)
    progress, began, saved = [begin], time.monotonic(), time.monotonic()
    made = batches(demo_speech.bank(), progress, random.SystemRandom().getrandbits(32) if resume else seed)
    for step, batch in enumerate(made, start=1):
        minutes_done = (time.monotonic() - began) / 60
        progress[0] = begin + (1 - begin) * minutes_done / minutes
        losses = train_step(model, steppers, batch, progress[0], learning_rate(progress[0], step, rate))
        if step % 50 == 0:
            text = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items() if value.ndim == 0)
            print(f"{minutes_done:.1f} min, step {step}, {batch.frames.shape[2] // 50} s: {text}", flush=True)
        if step % 200 == 0:
            print(check(model, test), flush=True)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or progress[0] >= 1:
            save(model)
            saved = time.monotonic()
        if progress[0] >= 1:
            return


if __name__ == "__main__":
    main()
