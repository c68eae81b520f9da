"""What a Whisper model knows and takes, by its config files and its vocabulary: the same for every engine."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from run_transcription.engines.prompts import prompt_ids
from run_transcription.engines.rows import Start, complete, language_code
from run_transcription.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Decoding

MULTILINGUAL_VOCABULARY = 51_865  # ids; openai/whisper tells English-only checkpoints by having fewer
POSITIONS = 50  # of the encoder, a second


@dataclass(frozen=True, slots=True)
class Abilities:
    """The languages and tasks of a model, its window and its longest text; refuses what it can't do."""

    id: str
    vocabulary: Vocabulary
    languages: Mapping[str, int]  # token of each code; none where the model knows only English
    tasks: Mapping[str, int]
    suppressed: tuple[int, ...]  # tokens that the model itself never writes
    size: int  # ids in its vocabulary
    longest: int  # ids of prompt and text together
    window: float  # seconds
    pruned: bool  # its decoder was cut down, as turbo's

    @property
    def codes(self) -> list[str]:
        """The codes of the languages that it knows."""
        return [*self.languages] or ["en"]

    def check(self, decoding: Decoding) -> Decoding:
        """Return it with its languages as codes; raise Rejected (unsupported_option) where this model can't so."""
        if decoding.task == "translate" and "translate" not in self.tasks:
            raise self.refused("can't translate: use --task transcribe, or a multilingual model")
        if decoding.task == "translate" and self.pruned:
            raise self.refused("was not trained to translate since its decoder was cut down, as turbo's: use large-v3")
        code, *allowed = (self._code(name) for name in (decoding.language, *decoding.languages))
        if code is not None and allowed and code not in allowed:
            raise self.refused(f"was told --languages {','.join(map(str, allowed))}: --language {code} is none of them")
        if decoding.chunk_length > self.window:
            length = f"{decoding.chunk_length:g}"
            raise self.refused(f"hears {self.window:g} s at a time: --chunk-length {length} is too long")
        beyond = [token for token in decoding.suppress_tokens if token >= self.size]
        if beyond:
            raise self.refused(f"has no token {beyond[0]}: leave it out of --suppress-tokens")
        self.prompt(decoding)
        return replace(decoding, language=code, languages=tuple(str(each) for each in allowed))

    def allowed(self, decoding: Decoding) -> list[str]:
        """Return the codes of the languages that may be detected."""
        return [code for code in self.codes if not decoding.languages or code in decoding.languages]

    def given(self, decoding: Decoding) -> str | None:
        """Return the language that needs no detection, None where it has to be detected."""
        return decoding.language or (None if self.languages else "en")

    def start(self, logits: torch.Tensor, decoding: Decoding) -> Start:
        """Return what logits [rows, vocabulary] behind <|startoftranscript|> say of each row."""
        no_speech = tuple(logits.softmax(dim=-1)[:, self.vocabulary.no_speech].tolist())
        given = self.given(decoding)
        if given is not None:
            return Start((given,) * len(logits), (1.0,) * len(logits), no_speech)
        codes = self.allowed(decoding)
        probability, index = logits[:, [self.languages[code] for code in codes]].softmax(dim=-1).max(dim=-1)
        return Start(tuple(codes[i] for i in index.tolist()), tuple(probability.tolist()), no_speech)

    def prompt(self, decoding: Decoding) -> list[int]:
        """Return what stands before <|startoftranscript|>."""
        return prompt_ids(decoding, self.vocabulary, self.longest)

    def prompts(self, languages: Sequence[str], decoding: Decoding) -> list[list[int]]:
        """Return what stands before the text of each row, all of one length."""
        before = [*self.prompt(decoding), self.vocabulary.start]
        task = [self.tasks[decoding.task]] if self.tasks else []
        return [[*before, *([self.languages[code]] if self.languages else []), *task] for code in languages]

    def never_written(self, decoding: Decoding) -> list[int]:
        """Return the tokens that are never written; -1 stands for the model's own list."""
        wanted = (self.suppressed if token < 0 else [token] for token in decoding.suppress_tokens)
        return sorted(set(itertools.chain.from_iterable(wanted)))

    def refused(self, why: str) -> Rejected:
        """Return the error that says what this model can't do."""
        return Rejected("unsupported_option", f"{self.id} {why}")

    def _code(self, name: str | None) -> str | None:
        """Return a language's code; raise Rejected for one that this model doesn't know."""
        code = language_code(name, self.codes)
        if code is not None and code not in self.codes:
            raise self.refused(f"knows no language {name!r}; it knows {', '.join(self.codes)}")
        return code


def abilities(model_id: str, config: Any, settings: Any, vocabulary: Vocabulary) -> Abilities:
    """Return what config.json and generation_config.json say, as objects; the latter is completed by the vocabulary."""
    multilingual = getattr(settings, "is_multilingual", config.vocab_size >= MULTILINGUAL_VOCABULARY)
    complete(settings, vocabulary, multilingual=multilingual)
    return Abilities(
        id=model_id,
        vocabulary=vocabulary,
        languages={name.strip("<|>"): i for name, i in settings.lang_to_id.items()} if multilingual else {},
        tasks=getattr(settings, "task_to_id", {}) if multilingual else {},
        suppressed=tuple(getattr(settings, "suppress_tokens", None) or ()),
        size=config.vocab_size,
        longest=config.max_target_positions,
        window=config.max_source_positions / POSITIONS,
        pruned=config.decoder_layers < config.encoder_layers,
    )
