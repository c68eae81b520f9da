"""Whisper models in true shapes whose random weights say a fixed number of tokens: the same work for every system.

The decoder's position embeddings point at the token that comes next, and that token's embedding points the same way.
So whatever is heard, and whoever decodes in whatever dtype, greedy decoding of a window gives <|0.00|>, words,
<|30.00|> and the end of text, each of them nearly certain: no system's thresholds ask for another try, and none seeks
back. All other weights are random, and cost what trained ones do.

The vocabulary is Whisper's own, read from the package openai-whisper.
"""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from tokenizers import Tokenizer
    from transformers import WhisperConfig

# width, encoder layers, decoder layers, heads, mel bins, languages
SHAPES = {
    "tiny": (384, 4, 4, 6, 80, 99),
    "base": (512, 6, 6, 8, 80, 99),
    "small": (768, 12, 12, 12, 80, 99),
    "turbo": (1280, 32, 4, 20, 128, 100),
    "large-v3": (1280, 32, 32, 20, 128, 100),
}
PROMPT = 3  # <|startoftranscript|>, language, task
_PUSH, _PULL = 100.0, 1.0  # of the position and of the token: the position wins over all that the layers add
PLAIN, _TIMES = 50_257, 1501  # tokens that are bytes of text, and those that are times


def make(shape: str, tokens: int, folder: Path) -> Path:
    """Write a model of a shape that gives `tokens` tokens a window into a folder, with Whisper's own vocabulary."""
    vocabulary = tokenizer(SHAPES[shape][-1])
    return save(SHAPES[shape], vocabulary, said(vocabulary, tokens), folder)


def save(numbers: Sequence[int], vocabulary: Tokenizer, ids: list[int], folder: Path) -> Path:
    """Write a model of so many parts that gives these ids for each window: a checkpoint of transformers in float32."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(1)
    folder.mkdir(parents=True)
    config = config_of(numbers, vocabulary)
    model = WhisperForConditionalGeneration(config).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.uniform_(-0.03, 0.03)
    point(model, ids)
    config.save_pretrained(folder)
    GenerationConfig.from_dict(generation(vocabulary)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    plain = {name: weight.detach().contiguous() for name, weight in model.named_parameters()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    _save_tokenizer(vocabulary, folder)
    return folder


def point(model: torch.nn.Module, ids: list[int]) -> None:
    """Let each position of the decoder call for its token."""
    import torch

    decoder = model.model.decoder
    width = decoder.embed_tokens.weight.shape[1]
    directions = torch.linalg.qr(torch.randn(width, width))[0]
    for k, token in enumerate(ids):
        decoder.embed_positions.weight.data[PROMPT - 1 + k] = _PUSH * directions[k]
        decoder.embed_tokens.weight.data[token] = _PULL * directions[k]


def said(vocabulary: Tokenizer, tokens: int) -> list[int]:
    """Return the ids that a window gives: a time, different words, a time, and the end."""
    plain = [id_ for name, id_ in vocabulary.get_vocab().items() if name[1:].isascii() and name[1:].islower()]
    words = [id_ for id_ in plain if vocabulary.id_to_token(id_)[0] == "Ġ" and len(vocabulary.id_to_token(id_)) > 3]
    chosen = random.Random(tokens).sample(sorted(words), tokens - 2)
    times = [vocabulary.token_to_id(name) for name in ("<|0.00|>", "<|30.00|>", "<|endoftext|>")]
    return [times[0], *chosen, *times[1:]]


def tokenizer(languages: int) -> Tokenizer:
    """Return Whisper's multilingual vocabulary with its special tokens and times."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    made = Tokenizer(models.BPE(*_ranks()))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in list(LANGUAGES)[:languages])]
    names += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(_TIMES)])
    return made


def config_of(numbers: Sequence[int], vocabulary: Tokenizer) -> WhisperConfig:
    """Return the config of a row of SHAPES."""
    from transformers import WhisperConfig

    width, encoder, decoder, heads, mels, _ = numbers
    end = vocabulary.token_to_id("<|endoftext|>")
    return WhisperConfig(
        vocab_size=vocabulary.get_vocab_size(),
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=vocabulary.token_to_id("<|startoftranscript|>"),
        suppress_tokens=[],
        begin_suppress_tokens=[],
        dtype="float32",
    )


def generation(vocabulary: Tokenizer) -> dict[str, object]:
    """Return generation_config.json."""
    ids = vocabulary.get_vocab()
    end = ids["<|endoftext|>"]
    languages = [name for name in ids if name[:2] == "<|" and name[2:-2].isalpha() and len(name) <= len("<|yue|>")]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "is_multilingual": True,
        "lang_to_id": {name: ids[name] for name in languages},
        "task_to_id": {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "suppress_tokens": [],
        "begin_suppress_tokens": [],
    }


def _ranks() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read openai-whisper's ranks; each token's merge is that of the two parts which were there before it."""
    package = importlib.util.find_spec("whisper")
    if package is None or package.origin is None:
        raise SystemExit("openai-whisper is lacking, which has Whisper's vocabulary: make bench installs it")
    path = Path(package.origin).parent / "assets" / "multilingual.tiktoken"
    pairs = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    letter = letters()
    spelled = {token: "".join(letter[byte] for byte in token) for token in ranks}
    merges = [halves(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    return {spelled[token]: rank for token, rank in ranks.items()}, [(spelled[a], spelled[b]) for a, b in merges if a]


def halves(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that the merges before a token's own leave of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        candidates = [(ranks.get(a + b, len(ranks)), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, i = min(candidates)
        if rank >= ranks[token]:
            return b"", b""  # a token that no merge makes
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def letters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level BPE (GPT-2's rule)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _save_tokenizer(vocabulary: Tokenizer, folder: Path) -> None:
    vocabulary.save(str(folder / "tokenizer.json"))
    vocabulary.model.save(str(folder))
    end = "<|endoftext|>"
    special = [token.content for token in vocabulary.get_added_tokens_decoder().values() if token.special]
    settings = {
        "tokenizer_class": "WhisperTokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 448,
        "additional_special_tokens": special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
