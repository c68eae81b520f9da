"""The demo model's vocabulary: a byte-level BPE in which each word is one token, with all of Whisper's special tokens.

Order of ids, as in Whisper: bytes, merges, <|endoftext|>, <|startoftranscript|>, languages, tasks, …, 1501 timestamps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.models.whisper.tokenization_whisper import LANGUAGES

DIGITS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
}
CALL_SIGNS = (
    *("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima"),
    *("mike", "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey"),
    *("xray", "yankee", "zulu"),
)
WORDS = {"en": (*DIGITS["en"], *CALL_SIGNS), "de": DIGITS["de"]}
ALL_WORDS = (*WORDS["en"], *WORDS["de"])
TRANSLATION = dict(zip(DIGITS["de"], DIGITS["en"], strict=True))
TIMESTAMPS = 1501
TIMESTAMP_STEP = 0.02  # seconds
SPECIALS_BEFORE_TIME = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    *(f"<|{code}|>" for code in list(LANGUAGES)[:99]),
    *("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids by name: `word["zero"]`, `special["<|en|>"]`, and the id of <|0.00|>."""

    word: dict[str, int]
    special: dict[str, int]
    timestamp_begin: int
    size: int


def _letters() -> list[str]:
    """Return the printable character that stands for each byte in a byte-level BPE (GPT-2's rule)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _merges() -> tuple[list[str], list[tuple[str, str]]]:
    """Spell each word with its leading space from left to right: no merge can take part in another word's chain."""
    letters = _letters()
    tokens, merges = list(letters), []
    known = set(tokens)
    for word in ALL_WORDS:
        symbols = [letters[byte] for byte in f" {word}".encode()]
        left = symbols[0]
        for right in symbols[1:]:
            if left + right not in known:
                known.add(left + right)
                tokens.append(left + right)
                merges.append((left, right))
            left += right
    return tokens, merges


def _times() -> list[str]:
    return [f"<|{step * TIMESTAMP_STEP:.2f}|>" for step in range(TIMESTAMPS)]


def build() -> tuple[Tokenizer, Vocabulary]:
    """Return the tokenizer and its ids."""
    tokens, merges = _merges()
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS_BEFORE_TIME])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in _times()])
    word = {word: tokenizer.encode(f" {word}").ids[0] for word in ALL_WORDS}
    special = {name: tokenizer.token_to_id(name) for name in SPECIALS_BEFORE_TIME}
    return tokenizer, Vocabulary(word, special, special["<|notimestamps|>"] + 1, tokenizer.get_vocab_size())


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json: special tokens listed in order, and timestamps, which are not special."""
    tokenizer = build()[0]
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    names = (*SPECIALS_BEFORE_TIME, *_times())
    special = set(SPECIALS_BEFORE_TIME)
    decoder = {
        str(tokenizer.token_to_id(name)): {"content": name, **plain, "special": name in special} for name in names
    }
    return {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 448,
        "additional_special_tokens": list(SPECIALS_BEFORE_TIME),
        "added_tokens_decoder": decoder,
    }


def save(folder: Path) -> Vocabulary:
    """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt; return the ids."""
    tokenizer, vocabulary = build()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), ensure_ascii=False))
    return vocabulary
