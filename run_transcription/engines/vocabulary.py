"""A model's tokenizer.json, read with the light `tokenizers` library: text of ids, and the ids of special tokens."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from run_transcription.errors import ModelNotLoaded

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tokenizers import Tokenizer as Backend

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class Vocabulary:
    """What Whisper's special tokens are called here; a `records.Tokenizer`."""

    def __init__(self, backend: Backend) -> None:
        """Look up the special tokens; raises ModelNotLoaded where one is missing."""
        self._backend = backend
        self.start = self._id("<|startoftranscript|>")
        self.end_of_text = self._id("<|endoftext|>")
        self.no_timestamps = self._id("<|notimestamps|>")
        self.no_speech = self.no_timestamps - 1  # <|nospeech|>, in older vocabularies <|nocaptions|>
        self.timestamp_begin = self.no_timestamps + 1  # not every tokenizer.json names the timestamps themselves
        self.previous = backend.token_to_id("<|startofprev|>")  # None: a vocabulary without prompts

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ids, special tokens and timestamps left out."""
        return str(self._backend.decode([token for token in tokens if token < self.end_of_text]))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; those of special tokens that it names are among them."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def languages(self) -> dict[str, int]:
        """Return the languages' tokens by name, such as <|en|>, in the order of their ids."""
        names = sorted((i, name) for name, i in self._backend.get_vocab().items() if _LANGUAGE.fullmatch(name))
        return {name: i for i, name in names}

    def tasks(self) -> dict[str, int]:
        """Return the tasks' tokens by name."""
        return {task: self._id(f"<|{task}|>") for task in ("transcribe", "translate")}

    def _id(self, name: str) -> int:
        found = self._backend.token_to_id(name)
        if found is None:
            raise ModelNotLoaded(f"the tokenizer has no {name}: it is not one of a Whisper model")
        return int(found)


def read(folder: Path) -> Vocabulary:
    """Return the vocabulary in a model's folder; older folders have only vocab.json and merges.txt.

    Raises ModelNotLoaded where it is none, or not one of a Whisper model.
    """
    return Vocabulary(_backend(folder))


def _backend(folder: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    try:
        if path.exists():
            return Backend.from_file(str(path))
        from transformers import WhisperTokenizer

        path = folder / "vocab.json"
        converted: Backend = WhisperTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # the library raises nothing more precise
        raise ModelNotLoaded(f"{path} is not a tokenizer: {' '.join(str(error).split())}") from error
    return converted
