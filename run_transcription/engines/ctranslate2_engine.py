"""The engine on CTranslate2: smaller and faster on a CPU, in float32, float16, bfloat16 and int8.

It decodes by `ctranslate2.models.Whisper` itself, on our windows, features and prompts; with float32 its ids are those
of the engine on torch. What differs, by what CTranslate2 gives: a row has no log-probability for each token, but where
its words are timed; chance at a temperature is drawn by CTranslate2, and not the same at every run; beams that have
ended are compared among the best `--beam-size` ones; --sequential, which is transformers' own, is refused.
"""

from __future__ import annotations

import itertools
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import ctranslate2
import torch

from run_transcription.engines import hardware, vocabulary
from run_transcription.engines.abilities import Abilities, abilities
from run_transcription.engines.artefact import MODEL
from run_transcription.engines.features import LogMel
from run_transcription.engines.no_room import no_room_told
from run_transcription.engines.rows import rank
from run_transcription.engines.spans import frames_in, spans
from run_transcription.errors import ModelNotLoaded, Rejected, TranscriptionError
from run_transcription.records import SAMPLE_RATE, Batch, Chunk, Decoding, ModelFacts, Row, Timing, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from run_transcription.records import Samples

LEAST = 1e-10  # probability


class CTranslate2Engine:
    """Decodes windows with a Whisper model of CTranslate2; a `records.Engine`."""

    def __init__(self, model: Any, known: Abilities, settings: SimpleNamespace, facts: ModelFacts, mels: int) -> None:
        """Take a model that is on its device, and the settings of its generation config."""
        self.facts = facts
        self.tokenizer: Tokenizer = known.vocabulary
        self._model = model
        self._abilities = known
        self._settings = settings
        self._features = LogMel(mels, round(known.window * 100), torch.device(facts.device))

    def check(self, decoding: Decoding) -> Decoding:
        """Return it with its languages as codes; raise Rejected (unsupported_option) where this model can't so."""
        if decoding.sequential or decoding.short_windows:
            raise self._only_torch("--sequential" if decoding.sequential else "--short-windows")
        return self._abilities.check(decoding)

    def _only_torch(self, option: str) -> Rejected:
        return self._abilities.refused(f"runs on CTranslate2: {option} is of --engine torch alone")

    def transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        """Decode windows (each float32 [samples], at most one encoder window long): a row for each, in order.

        Raises Rejected for a language or a task that the model doesn't have, OutOfMemory where they are too many at a
        time, TranscriptionError where it gives NaN.
        """
        with no_room_told(f"{len(windows)} windows at a time don't fit into memory: use a smaller --batch-size"):
            return self._transcribe(windows, self.check(decoding))

    def transcribe_sequentially(
        self,
        samples: Samples,  # noqa: ARG002
        decoding: Decoding,  # noqa: ARG002
        reached: Callable[[float], None],  # noqa: ARG002
    ) -> tuple[tuple[Chunk, ...], Batch]:
        """Refuse: the long form is transformers' own."""
        raise self._only_torch("--sequential")

    def _transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        marks = [hardware.now(self.facts.device)]
        features = self._features(windows)
        marks.append(hardware.now(self.facts.device))
        array = features.numpy() if self.facts.device == "cpu" else features
        encoded = self._model.encode(ctranslate2.StorageView.from_array(array))
        heard = self._heard(encoded, len(windows), decoding)
        marks.append(hardware.now(self.facts.device))
        prompts = self._abilities.prompts([language for language, _ in heard], decoding)
        found = self._generated(encoded, prompts, heard, decoding)
        if decoding.aligned:
            found = self._aligned(encoded, prompts, found, windows)
        marks.append(hardware.now(self.facts.device))
        spent = [after - before for before, after in itertools.pairwise(marks)]
        return Batch(tuple(found), Timing(features=spent[0], encode=spent[1], generate=spent[2], wall=sum(spent)))

    def _heard(self, encoded: Any, rows: int, decoding: Decoding) -> list[tuple[str, float]]:
        """Return the language of each row, and its share of the probability of those that may be detected."""
        given = self._abilities.given(decoding)
        if given is not None:
            return [(given, 1.0)] * rows
        allowed = self._abilities.allowed(decoding)
        found = []
        for row in self._model.detect_language(encoded):
            shares = {name.strip("<|>"): share for name, share in row}
            best = max(allowed, key=lambda code: shares[code])
            found.append((best, shares[best] / max(LEAST, sum(shares[code] for code in allowed))))
        return found

    def _generated(
        self, encoded: Any, prompts: list[list[int]], heard: Sequence[tuple[str, float]], decoding: Decoding
    ) -> list[Row]:
        drawn = decoding.temperature > 0
        beams = 1 if drawn else decoding.beam_size
        longest, prompt = self._abilities.longest, len(prompts[0])
        first = getattr(self._settings, "max_initial_timestamp_index", None)
        results = self._model.generate(
            encoded,
            prompts,
            beam_size=beams,
            patience=decoding.patience,
            num_hypotheses=decoding.best_of if drawn else beams,
            length_penalty=0 if beams == 1 else 1,  # 0: a score is the sum; 1: the mean, by which beams are compared
            # CTranslate2 takes half of it for the text, or what the prompt leaves, where that is less
            max_length=max(2 * (longest - prompt), longest - 1),
            return_scores=True,
            return_no_speech_prob=True,
            max_initial_timestamp_index=self._abilities.size if first is None else first,
            suppress_blank=bool(getattr(self._settings, "begin_suppress_tokens", None)),
            suppress_tokens=self._abilities.never_written(decoding),
            sampling_topk=0 if drawn else 1,
            sampling_temperature=decoding.temperature if drawn else 1,
        )
        return [
            self._row(result, decoding, longest - prompt, language)
            for result, language in zip(results, heard, strict=True)
        ]

    def _row(self, result: Any, decoding: Decoding, room: int, heard: tuple[str, float]) -> Row:
        """Return the best of a row's texts, of which none is longer than `room`."""
        mean = decoding.beam_size > 1 and not decoding.temperature
        texts = [
            (score * (len(tokens) if mean else 1), tuple(tokens))
            for tokens, score in zip(result.sequences_ids, result.scores, strict=True)
        ]
        total, tokens = max(texts, key=lambda text: rank(text[0], len(text[1]), decoding.length_penalty))
        if math.isnan(total) or math.isnan(result.no_speech_prob):
            raise TranscriptionError(f"{self.facts.id} gave NaN in {self.facts.dtype}: try --dtype float32")
        return Row(
            tokens=tokens,
            language=heard[0],
            language_probability=heard[1],
            no_speech_prob=result.no_speech_prob,
            avg_logprob=total / (len(tokens) + 1),
            temperature=decoding.temperature,
            complete=len(tokens) < room,
        )

    def _aligned(
        self, encoded: Any, prompts: Sequence[list[int]], rows: Sequence[Row], windows: Sequence[Samples]
    ) -> list[Row]:
        """Find out when each token was said, by the heads that the checkpoint names."""
        room = self._abilities.longest - len(prompts[0]) - 2  # for the text, between <|notimestamps|> and its end
        texts = [[token for token in row.tokens if token < self.tokenizer.end_of_text][:room] for row in rows]
        positions = round(self._abilities.window * SAMPLE_RATE) // 320
        frames = [2 * min(positions, frames_in(window)) for window in windows]
        found = {  # one prompt at a time: rows in other languages are passed over
            prompt: self._model.align(encoded, list(prompt), texts, frames) for prompt in {*map(tuple, prompts)}
        }
        return [
            self._timed(row, found[tuple(prompt)][number], window)
            for number, (row, prompt, window) in enumerate(zip(rows, prompts, windows, strict=True))
        ]

    def _timed(self, row: Row, found: Any, window: Samples) -> Row:
        """Return a row with times; its timestamps, of which nothing is said, get the mean probability of its text."""
        begins = dict(reversed([(token, frame) for token, frame in found.alignments]))  # where each is met first
        text = sum(token < self.tokenizer.end_of_text for token in row.tokens)
        starts = [begins.get(token, frames_in(window)) for token in range(text + 1)]
        said = [math.log(max(LEAST, each)) for each in found.text_token_probs]
        mean = sum(said) / len(said) if said else row.avg_logprob
        coming = iter(said)
        logprobs = (next(coming, mean) if token < self.tokenizer.end_of_text else mean for token in row.tokens)
        times = spans(row.tokens, starts, window, self.tokenizer.end_of_text)
        return replace(row, times=times, logprobs=tuple(round(each, 4) for each in logprobs))


def dtype(wanted: str, device: str) -> str:
    """Resolve auto: float16 on a GPU that has it, else float32. Raises ModelNotLoaded for one that is not here."""
    has = ctranslate2.get_supported_compute_types(device)
    if wanted == "auto":
        return "float16" if device == "cuda" and "float16" in has else "float32"
    if wanted not in has:
        raise ModelNotLoaded(
            f"--dtype {wanted}: CTranslate2 has not got it on this {'GPU' if device == 'cuda' else 'CPU'}; "
            f"it has {', '.join(sorted(has))}"
        )
    return wanted


def convert(checkpoint: Path, folder: Path, dtype: str) -> None:
    """Write a checkpoint as CTranslate2 reads it, with weights in a dtype, by the parts of its own converter."""
    from ctranslate2.converters.transformers import WhisperLoader

    from run_transcription.engines.assemble import mapped_model

    model = mapped_model(checkpoint, "float32", "sdpa")
    words = vocabulary.read(checkpoint)
    known = abilities("", model.config, model.generation_config, words)
    with _errors_told(checkpoint), torch.no_grad():
        names = words.names(known.size)
        if known.languages and "" not in names:
            names[0] = ""  # by this name, which Whisper's multilingual vocabulary has, CTranslate2 knows such a model
        loader = WhisperLoader()
        spec = loader.get_model_spec(model)
        loader.set_config(spec.config, model, words)
        loader.set_vocabulary(spec, names)
        spec.validate()
        spec.optimize(quantization=dtype)
        folder.mkdir()
        spec.save(str(folder))


def open_artefact(folder: Path, facts: ModelFacts) -> CTranslate2Engine:
    """Return the engine of an artefact's folder, on the device and in the dtype of `facts`."""
    config, settings = (
        SimpleNamespace(**json.loads((folder / name).read_text(encoding="utf-8")))
        for name in ("config.json", "generation_config.json")
    )
    known = abilities(facts.id, config, settings, vocabulary.read(folder))
    with _errors_told(folder):
        model = ctranslate2.models.Whisper(
            str(folder / MODEL),
            device=facts.device,
            compute_type=facts.dtype,
            intra_threads=torch.get_num_threads(),  # which --threads sets
        )
    return CTranslate2Engine(model, known, settings, facts, config.num_mel_bins)


@contextmanager
def _errors_told(folder: Path) -> Iterator[None]:
    """Say in one line what CTranslate2 finds wrong with a folder."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise TranscriptionError(f"{folder} can't be used by CTranslate2: {' '.join(str(error).split())}") from error
