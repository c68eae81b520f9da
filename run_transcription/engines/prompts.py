"""What stands before <|startoftranscript|>: hot words and the text that came before, as the model's own ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from run_transcription.errors import Rejected

if TYPE_CHECKING:
    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Decoding


def prompt_ids(decoding: Decoding, vocabulary: Vocabulary, longest: int) -> list[int]:
    """Return <|startofprev|>, the hot words and the end of the prompt; nothing where there is neither.

    As at openai/whisper at most half of the `longest` text less one; where there are both, hot words get half of that.
    Raises Rejected (unsupported_option) for a vocabulary without prompts, and for text that names special tokens.
    """
    words, text = (_ids(decoding, name, vocabulary) for name in ("hotwords", "initial_prompt"))
    if not words and not text:
        return []
    if vocabulary.previous is None:
        raise Rejected("unsupported_option", "the model takes neither --initial-prompt nor --hotwords")
    room = longest // 2 - 1
    words = words[: room // 2 if text else room]
    return [vocabulary.previous, *words, *text[max(0, len(text) - (room - len(words))) :]]


def _ids(decoding: Decoding, name: str, vocabulary: Vocabulary) -> list[int]:
    plain = str(getattr(decoding, name)).strip()
    ids = vocabulary.encode(f" {plain}") if plain else []
    if any(token >= vocabulary.end_of_text for token in ids):
        option = name.replace("_", "-")
        raise Rejected("unsupported_option", f"--{option} holds a special token of the model, such as <|endoftext|>")
    return ids
