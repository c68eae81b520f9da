"""The engine on PyTorch: one encoder pass and one `model.generate` call for each batch of windows."""

from __future__ import annotations

import itertools
import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from run_transcription.engines import long_form
from run_transcription.engines.choosing import Chooser
from run_transcription.engines.features import LogMel
from run_transcription.errors import OutOfMemory, Rejected, TranscriptionError
from run_transcription.records import SAMPLE_RATE, Batch, Chunk, Decoding, ModelFacts, Row, Timing, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import WhisperForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Samples

MULTILINGUAL_VOCABULARY = 51_865  # ids; openai/whisper tells English-only checkpoints by having fewer
NO_ROOM = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")  # in any of torch's errors

# transformers warns of what its own Whisper code hands to its own `generate`, and of an attention mask that Whisper
# doesn't use: neither can be avoided from here
logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class _Start:
    """What the first decoder step says of each row; `en` where the model knows only English."""

    languages: tuple[str, ...]
    probabilities: tuple[float, ...]
    no_speech: tuple[float, ...]


class TorchEngine:
    """Decodes windows with a transformers Whisper model; a `records.Engine`."""

    def __init__(self, model: WhisperForConditionalGeneration, tokenizer: Vocabulary, facts: ModelFacts) -> None:
        """Take a model that is on its device; its generation config is completed from the vocabulary."""
        self.facts = facts
        self.tokenizer: Tokenizer = tokenizer
        self._vocabulary = tokenizer
        self._model = model.eval()
        settings = model.generation_config
        self._multilingual = getattr(settings, "is_multilingual", model.config.vocab_size >= MULTILINGUAL_VOCABULARY)
        _complete(settings, tokenizer, multilingual=self._multilingual)
        self._tasks = getattr(settings, "task_to_id", {}) if self._multilingual else {}
        self._languages = settings.lang_to_id if self._multilingual else {}
        frames = model.config.max_source_positions * 2  # the encoder's second convolution has stride 2
        self._features = LogMel(model.config.num_mel_bins, frames, model.device)

    def check(self, decoding: Decoding) -> Decoding:
        """Return it with its language as a code; raise Rejected (unsupported_option) where this model can't so."""
        if decoding.task == "translate" and "translate" not in self._tasks:
            raise Rejected(
                "unsupported_option", f"{self.facts.id} can't translate: use --task transcribe, or a multilingual model"
            )
        code = _language_code(decoding.language)
        if code is not None and code not in (known := self._codes()):
            raise Rejected(
                "unsupported_option",
                f"{self.facts.id} knows no language {decoding.language!r}; it knows {', '.join(known)}",
            )
        window = self._features.samples / SAMPLE_RATE
        if decoding.chunk_length > window:
            raise Rejected(
                "unsupported_option",
                f"{self.facts.id} hears {window:g} s at a time: --chunk-length {decoding.chunk_length:g} is too long",
            )
        return replace(decoding, language=code)

    def transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        """Decode windows (each float32 [samples], at most one encoder window long): a row for each, in order.

        Raises Rejected for a language or a task that the model doesn't have, OutOfMemory where they are too many at a
        time, TranscriptionError where it gives NaN.
        """
        with _no_room_told(f"{len(windows)} windows at a time don't fit into memory: use a smaller --batch-size"):
            return self._transcribe(windows, self.check(decoding))

    def transcribe_sequentially(self, samples: Samples, decoding: Decoding) -> tuple[tuple[Chunk, Row], ...]:
        """Decode float32 [samples] of any length by transformers' long form, in the language of its first window.

        Raises OutOfMemory where the recording is too long for it.
        """
        decoding = self.check(decoding)
        with _no_room_told("the whole recording at once does not fit into memory: leave --sequential out"):
            with torch.inference_mode():
                features = self._features([samples[: self._features.samples]]).to(self._model.dtype)
                start = self._start(self._model.model.encoder(features), decoding)
            found = long_form.passed(self._model, samples, decoding, self._chosen(start.languages[0], decoding))
        language, probability = start.languages[0], start.probabilities[0]
        return tuple((chunk, replace(row, language=language, language_probability=probability)) for chunk, row in found)

    def _transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        with torch.inference_mode():
            marks = [self._now()]
            features = self._features(windows).to(self._model.dtype)
            marks.append(self._now())
            encoded = self._model.model.encoder(features)
            start = self._start(encoded, decoding)
            marks.append(self._now())
            limit = self._model.config.max_target_positions
            chooser = Chooser(len(windows), self.tokenizer.end_of_text, limit, self._model.device)
            chooser.heat(decoding.temperature, windows)
            rows = self._generate(encoded, start, decoding, chooser)
            marks.append(self._now())
        spent = [after - before for before, after in itertools.pairwise(marks)]
        return Batch(rows, Timing(features=spent[0], encode=spent[1], generate=spent[2], wall=marks[-1] - marks[0]))

    def _start(self, encoded: BaseModelOutput, decoding: Decoding) -> _Start:
        """Take one decoder step on <|startoftranscript|>: it tells the languages and the probability of no speech."""
        rows = len(encoded.last_hidden_state)
        prompt = torch.full((rows, 1), self._vocabulary.start, device=self._model.device)
        logits = self._model(encoder_outputs=encoded, decoder_input_ids=prompt, use_cache=False).logits[:, 0].float()
        no_speech = tuple(logits.softmax(dim=-1)[:, self._vocabulary.no_speech].tolist())
        self._refuse_nan(no_speech)
        given = decoding.language or (None if self._multilingual else "en")
        if given is not None:
            return _Start((given,) * rows, (1.0,) * rows, no_speech)
        probability, index = logits[:, list(self._languages.values())].softmax(dim=-1).max(dim=-1)
        codes = self._codes()
        return _Start(tuple(codes[i] for i in index.tolist()), tuple(probability.tolist()), no_speech)

    def _generate(
        self, encoded: BaseModelOutput, start: _Start, decoding: Decoding, chooser: Chooser
    ) -> tuple[Row, ...]:
        """Decode once: transformers would seek to the last timestamp and decode the window again."""
        chosen = self._chosen([*start.languages], decoding)
        ids = self._model.generate(
            encoder_outputs=encoded,
            **chosen,
            num_beams=1,
            do_sample=False,  # the chooser does, where it is wanted
            temperature=0.0,
            return_timestamps=True,
            force_unique_generate_call=True,
            max_length=self._model.config.max_target_positions,
            logits_processor=LogitsProcessorList([chooser]),
        )
        prompt, end = 1 + len(chosen), self.tokenizer.end_of_text
        logprobs = chooser.logprobs.tolist()
        self._refuse_nan([sum(row) for row in logprobs])
        said = zip(ids.tolist(), logprobs, start.languages, start.probabilities, start.no_speech, strict=True)
        return tuple(
            _row(row[prompt:], end, each, Row((), language, probability, no_speech, 0.0, decoding.temperature))
            for row, each, language, probability, no_speech in said
        )

    def _chosen(self, languages: str | list[str], decoding: Decoding) -> dict[str, object]:
        """Return what the prompt says, as `generate` takes it: nothing for a model that knows only English."""
        named = f"<|{languages}|>" if isinstance(languages, str) else [f"<|{code}|>" for code in languages]
        chosen: dict[str, object] = {"language": named} if self._multilingual else {}
        return chosen | ({"task": decoding.task} if self._tasks else {})

    def _refuse_nan(self, numbers: Sequence[float]) -> None:
        if any(map(math.isnan, numbers)):
            raise TranscriptionError(f"{self.facts.id} gave NaN in {self.facts.dtype}: try --dtype float32")

    def _codes(self) -> list[str]:
        return [name.strip("<|>") for name in self._languages] if self._multilingual else ["en"]

    def _now(self) -> float:
        """Return the time at which the device has done what it was told."""
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()


@contextmanager
def _no_room_told(message: str) -> Iterator[None]:
    """Turn the errors by which torch, CUDA's libraries and numpy say that memory has run out into one of ours."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        no_room = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if no_room or any(words in str(error) for words in NO_ROOM):
            raise OutOfMemory(message) from error
        raise


def _complete(settings: object, tokenizer: Vocabulary, *, multilingual: bool) -> None:
    """Add to a generation config what older checkpoints lack there: the vocabulary has it too."""
    missing: dict[str, object] = {"is_multilingual": multilingual, "no_timestamps_token_id": tokenizer.no_timestamps}
    if multilingual and not hasattr(settings, "lang_to_id"):
        missing |= {"lang_to_id": tokenizer.languages(), "task_to_id": tokenizer.tasks()}
    for name, value in missing.items():
        if not hasattr(settings, name):
            setattr(settings, name, value)


def _language_code(name: str | None) -> str | None:
    """Return `en` for `en`, `English` or `<|en|>`; a name that nobody knows comes back as it is."""
    if name is None:
        return None
    plain = name.lower().strip("<|> ")
    return str(TO_LANGUAGE_CODE.get(plain, plain))


def _row(ids: Sequence[int], end: int, logprobs: Sequence[float], known: Row) -> Row:
    """Complete a row by its ids, padding behind the first end of text left out, and by what each of them was worth."""
    complete = end in ids
    tokens = tuple(ids[: ids.index(end)] if complete else ids)
    return replace(
        known,
        tokens=tokens,
        avg_logprob=sum(logprobs) / (len(tokens) + 1),  # openai/whisper counts the end, too
        complete=complete,
        logprobs=tuple(round(each, 4) for each in logprobs[: len(tokens)]),
    )
