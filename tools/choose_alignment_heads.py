"""Measure which heads of the demo model's cross-attention look at the word that is being written; keep the best two.

usage: python tools/choose_alignment_heads.py [--model FOLDER]      (espeak-ng)
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import click
import demo_speech
import torch
from demo_examples import VOCABULARY, make_batch
from demo_network import FOLDER, LogMel
from rich.console import Console
from rich.table import Table
from transformers import WhisperForConditionalGeneration

WINDOWS = 48
KEPT = 2


@torch.inference_mode()
def share_on_word(model: WhisperForConditionalGeneration) -> torch.Tensor:
    """Return for every [layer, head] the mean share of attention that falls on the word being written."""
    batch = make_batch(demo_speech.bank(held_out=True), 30, WINDOWS, random.Random(5))
    out = model(input_features=LogMel()(batch.samples), decoder_input_ids=batch.inputs, output_attentions=True)
    words = (batch.targets >= 256) & (batch.targets < VOCABULARY.special["<|endoftext|>"])
    rows, tokens = (words & (batch.spans[..., 0] >= 0)).nonzero(as_tuple=True)
    place = torch.arange(1500)
    inside = (place >= batch.spans[rows, tokens, :1]) & (place < batch.spans[rows, tokens, 1:])
    shares = [(layer.transpose(1, 2)[rows, tokens] * inside[:, None]).sum(-1).mean(0) for layer in out.cross_attentions]
    return torch.stack(shares)


@click.command()
@click.option("--model", "folder", default=FOLDER, type=click.Path(path_type=Path), help="Model folder.")
@click.option("--threads", default=2)
def main(folder: Path, threads: int) -> None:
    """Print all heads, and write the best two into generation_config.json."""
    torch.set_num_threads(threads)
    shares = share_on_word(WhisperForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").float())
    heads = [(layer, head) for layer in range(shares.shape[0]) for head in range(shares.shape[1])]
    best = sorted(heads, key=lambda pair: -float(shares[pair]))
    table = Table("layer", "head", "attention on the word")
    for layer, head in best:
        table.add_row(str(layer), str(head), f"{float(shares[layer, head]):.1%}")
    Console().print(table)
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["alignment_heads"] = [list(pair) for pair in sorted(best[:KEPT])]
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
