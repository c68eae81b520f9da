"""A tiny Whisper with random weights and a byte-level vocabulary, saved like a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)  # matrices so small: on a busy machine threads would only wait for one another

LANGUAGES = ("en", "de", "fr")
BEFORE_TIME = (
    *("<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES), "<|translate|>"),
    *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)


def tokenizer() -> Tokenizer:
    """All 256 bytes, Whisper's special tokens in their order, and 1501 timestamps."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in BEFORE_TIME])
    made.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(1501)])
    return made


def make(
    folder: Path,
    *,
    multilingual: bool = True,
    translates: bool = True,
    outdated: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    mels: int = 80,
) -> Path:
    """Save a checkpoint of one encoder and one decoder layer into a folder, and return the folder.

    With outdated=True its generation config knows neither languages nor timestamps, as in early fine-tunes.
    """
    vocabulary = tokenizer()
    ids = {name: vocabulary.token_to_id(name) for name in BEFORE_TIME}
    end = ids["<|endoftext|>"]
    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=vocabulary.get_vocab_size(),
        num_mel_bins=mels,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_target_positions=40,
        init_std=0.8,  # large, so that rows differ
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config).to(dtype)
    settings = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, decoder_start_token_id=config.decoder_start_token_id
    )
    settings.is_multilingual = multilingual
    if not outdated:
        _complete(settings, ids, multilingual=multilingual, translates=translates)
        settings.begin_suppress_tokens = [vocabulary.token_to_id("Ġ"), end]
    model.generation_config = settings
    model.save_pretrained(folder)
    vocabulary.save(str(folder / "tokenizer.json"))
    return folder


def _complete(settings: GenerationConfig, ids: dict[str, int], *, multilingual: bool, translates: bool) -> None:
    """Add what newer checkpoints say of timestamps, languages and tasks."""
    settings.no_timestamps_token_id = ids["<|notimestamps|>"]
    settings.max_initial_timestamp_index = 50
    settings.suppress_tokens = [1, 2]
    if multilingual:
        settings.lang_to_id = {f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES}
    if multilingual and translates:
        settings.task_to_id = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
