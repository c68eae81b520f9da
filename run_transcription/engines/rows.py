"""What an engine has decoded → rows, and the settings that its checkpoint may lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from run_transcription.engines.beam import Beam
from run_transcription.records import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from run_transcription.engines.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Start:
    """What the first decoder step says of each row; `en` where the model knows only English."""

    languages: tuple[str, ...]
    probabilities: tuple[float, ...]
    no_speech: tuple[float, ...]


def rows(beams: Sequence[Beam], start: Start, temperature: float) -> list[Row]:
    """Return what was decoded as rows."""
    facts = zip(beams, start.languages, start.probabilities, start.no_speech, strict=True)
    return [
        Row(
            tokens=beam.tokens,
            language=language,
            language_probability=probability,
            no_speech_prob=no_speech,
            avg_logprob=beam.total / (len(beam.tokens) + 1),  # openai/whisper counts the end, too
            temperature=temperature,
            complete=beam.complete,
            logprobs=tuple(round(each, 4) for each in beam.logprobs[: len(beam.tokens)]),
        )
        for beam, language, probability, no_speech in facts
    ]


def beam_of(ids: Sequence[int], end: int, logprobs: Sequence[float]) -> Beam:
    """Return generated ids up to their first end of text; what stands behind it is padding."""
    complete = end in ids
    tokens = tuple(ids[: ids.index(end)] if complete else ids)
    return Beam(tokens, tuple(logprobs[: len(tokens) + complete]), complete)


def best(beams: Sequence[Beam], candidates: int, penalty: float | None) -> list[Beam]:
    """Return the best of each so many beams."""
    groups = [beams[first : first + candidates] for first in range(0, len(beams), candidates)]
    return [max(group, key=lambda beam: beam.rank(penalty)) for group in groups]


def complete(settings: object, vocabulary: Vocabulary, *, multilingual: bool) -> None:
    """Add to a generation config what older checkpoints lack there: the vocabulary has it too."""
    missing: dict[str, object] = {"is_multilingual": multilingual, "no_timestamps_token_id": vocabulary.no_timestamps}
    missing |= {"prev_sot_token_id": vocabulary.previous}
    if multilingual and not hasattr(settings, "lang_to_id"):
        missing |= {"lang_to_id": vocabulary.languages(), "task_to_id": vocabulary.tasks()}
    for name, value in missing.items():
        if not hasattr(settings, name):
            setattr(settings, name, value)


def language_code(name: str | None) -> str | None:
    """Return `en` for `en`, `English` or `<|en|>`; a name that nobody knows comes back as it is."""
    if name is None:
        return None
    plain = name.lower().strip("<|> ")
    return str(TO_LANGUAGE_CODE.get(plain, plain))
