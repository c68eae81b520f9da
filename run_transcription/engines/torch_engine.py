"""The engine on PyTorch: one encoder pass and one `model.generate` call for each batch of windows."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList

from run_transcription.engines import alignment, beam, greedy, hardware, long_form
from run_transcription.engines.abilities import abilities
from run_transcription.engines.choosing import Chooser
from run_transcription.engines.encoder import encode
from run_transcription.engines.features import LogMel
from run_transcription.engines.no_room import no_room_told
from run_transcription.engines.rows import beam_of, best, rows
from run_transcription.errors import TranscriptionError
from run_transcription.records import Batch, Chunk, Decoding, ModelFacts, Row, Timing, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import WhisperForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    from run_transcription.engines.rows import Beam, Start
    from run_transcription.engines.vocabulary import Vocabulary
    from run_transcription.records import Samples

# transformers warns of what its own Whisper code hands to its own `generate`, and of an attention mask that Whisper
# doesn't use: neither can be avoided from here
logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)


class TorchEngine:
    """Decodes windows with a transformers Whisper model; a `records.Engine`."""

    def __init__(self, model: WhisperForConditionalGeneration, tokenizer: Vocabulary, facts: ModelFacts) -> None:
        """Take a model that is on its device; its generation config is completed from the vocabulary."""
        self.facts = facts
        self.tokenizer: Tokenizer = tokenizer
        self._vocabulary = tokenizer
        self._model = model.eval()
        self._abilities = abilities(facts.id, model.config, model.generation_config, tokenizer)
        frames = model.config.max_source_positions * 2  # the encoder's second convolution has stride 2
        self._features = LogMel(model.config.num_mel_bins, frames, model.device)

    def check(self, decoding: Decoding) -> Decoding:
        """Return it with its languages as codes; raise Rejected (unsupported_option) where this model can't so."""
        return self._abilities.check(decoding)

    def transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        """Decode windows (each float32 [samples], at most one encoder window long): a row for each, in order.

        Raises Rejected for a language or a task that the model doesn't have, OutOfMemory where they are too many at a
        time, TranscriptionError where it gives NaN.
        """
        with no_room_told(f"{len(windows)} windows at a time don't fit into memory: use a smaller --batch-size"):
            return self._transcribe(windows, self.check(decoding))

    def transcribe_sequentially(
        self, samples: Samples, decoding: Decoding, reached: Callable[[float], None]
    ) -> tuple[tuple[Chunk, ...], Batch]:
        """Decode float32 [samples] of any length by transformers' long form, in the language of its first window.

        `reached` is told at each window how many seconds are done. The timing counts the encoder to `generate`, which
        runs it. Raises OutOfMemory where the recording is too long for it.
        """
        with no_room_told("the whole recording at once does not fit into memory: leave --sequential out"):
            return self._passed(samples, self.check(decoding), reached)

    def _passed(
        self, samples: Samples, decoding: Decoding, reached: Callable[[float], None]
    ) -> tuple[tuple[Chunk, ...], Batch]:
        marks = [hardware.now(self._model.device.type)]
        recording = long_form.whole(self._model, samples)
        marks.append(hardware.now(self._model.device.type))
        with torch.inference_mode():
            first = encode(self._model, self._features([samples[: self._features.samples]]))
            start = self._start(first, decoding)
        marks.append(hardware.now(self._model.device.type))
        language, probability = start.languages[0], start.probabilities[0]
        prompt = torch.tensor(self._abilities.prompt(decoding), device=self._model.device)
        chosen = self._chosen(language, decoding) | ({"prompt_ids": prompt} if len(prompt) else {})
        chosen["suppress_tokens"] = self._abilities.never_written(decoding)
        found = long_form.passed(self._model, recording, decoding, chosen, reached)
        told = [replace(row, language=language, language_probability=probability) for _, row in found]
        chunks = tuple(chunk for chunk, _ in found)
        if decoding.aligned:
            told = self._aligned_anew(samples, chunks, told, decoding)
        marks.append(hardware.now(self._model.device.type))
        return chunks, Batch(tuple(told), self._spent(marks))

    def _transcribe(self, windows: Sequence[Samples], decoding: Decoding) -> Batch:
        with torch.inference_mode():
            marks = [hardware.now(self._model.device.type)]
            features = self._features(windows, short=decoding.short_windows)
            marks.append(hardware.now(self._model.device.type))
            encoded = encode(self._model, features)
            start = self._start(encoded, decoding)
            marks.append(hardware.now(self._model.device.type))
            if decoding.beam_size > 1 and not decoding.temperature:
                beams = self._searched(encoded, start.languages, decoding)
            else:
                beams = self._generated(encoded, start.languages, decoding, windows)
            found = rows(beams, start, decoding.temperature)
            if decoding.aligned:
                found = self._aligned(encoded, found, windows, decoding)
            marks.append(hardware.now(self._model.device.type))
        return Batch(tuple(found), self._spent(marks))

    @staticmethod
    def _spent(marks: Sequence[float]) -> Timing:
        """Return the seconds from mark to mark: the features', the encoder's, the decoder's."""
        features, encode, generate = (after - before for before, after in itertools.pairwise(marks))
        return Timing(features=features, encode=encode, generate=generate, wall=marks[-1] - marks[0])

    def _start(self, encoded: BaseModelOutput, decoding: Decoding) -> Start:
        """Take one decoder step on <|startoftranscript|>: it tells the languages and the probability of no speech."""
        prompt = torch.full((len(encoded.last_hidden_state), 1), self._vocabulary.start, device=self._model.device)
        logits = self._model(encoder_outputs=encoded, decoder_input_ids=prompt, use_cache=False).logits[:, 0].float()
        start = self._abilities.start(logits, decoding)
        self._refuse_nan(start.no_speech)
        return start

    def _generated(
        self, encoded: BaseModelOutput, heard: Sequence[str], decoding: Decoding, windows: Sequence[Samples]
    ) -> list[Beam]:
        """Decode once: transformers would seek to the last timestamp and decode the window again."""
        candidates = decoding.best_of if decoding.temperature else 1
        states = encoded.last_hidden_state.repeat_interleave(candidates, dim=0)
        languages = [language for language in heard for _ in range(candidates)]
        limit = self._model.config.max_target_positions
        chooser = Chooser(len(languages), self.tokenizer.end_of_text, limit, self._model.device)
        chooser.heat(decoding.temperature, windows, candidates)
        prompts = self._prompts(languages, decoding)
        heard_states = type(encoded)(last_hidden_state=states)
        if greedy.applies(self._model):
            rules = beam.processors(self._model, self._abilities.never_written(decoding), prompts.shape[1])
            ids = greedy.decode(self._model, heard_states, prompts, rules, chooser)
        else:
            ids = self._by_generate(heard_states, languages, decoding, chooser)
        logprobs = chooser.logprobs.tolist()
        self._refuse_nan([sum(row) for row in logprobs])
        found = [
            beam_of(row[prompts.shape[1] :], self.tokenizer.end_of_text, each)
            for row, each in zip(ids.tolist(), logprobs, strict=True)
        ]
        return best(found, candidates, decoding.length_penalty)

    def _by_generate(
        self, encoded: BaseModelOutput, languages: list[str], decoding: Decoding, chooser: Chooser
    ) -> torch.Tensor:
        """Let transformers decode: the reference, and the way that any device and attention take."""
        before = torch.tensor(self._abilities.prompt(decoding), device=self._model.device)
        ids: torch.Tensor = self._model.generate(
            encoder_outputs=encoded,
            **self._chosen(languages, decoding),
            **({"prompt_ids": before} if len(before) else {}),
            num_beams=1,
            do_sample=False,  # the chooser does, where it is wanted
            temperature=0.0,
            return_timestamps=True,
            force_unique_generate_call=True,
            suppress_tokens=self._abilities.never_written(decoding),
            max_length=self._model.config.max_target_positions,
            logits_processor=LogitsProcessorList([chooser]),
        )
        return ids

    def _searched(self, encoded: BaseModelOutput, languages: Sequence[str], decoding: Decoding) -> list[Beam]:
        """Decode with several beams."""
        prompts = self._prompts(languages, decoding)
        rules = beam.processors(self._model, self._abilities.never_written(decoding), prompts.shape[1])
        plan = beam.Plan(decoding.beam_size, decoding.patience, decoding.length_penalty)
        found = beam.search(self._model, encoded, prompts, rules, plan, end=self.tokenizer.end_of_text)
        self._refuse_nan([each.total for each in found])
        return found

    def _aligned(
        self, encoded: BaseModelOutput, found: Sequence[Row], windows: Sequence[Samples], decoding: Decoding
    ) -> list[Row]:
        """Find out when each token was said."""
        prompts = self._prompts([str(row.language) for row in found], decoding)
        times = alignment.token_times(
            self._model,
            encoded.last_hidden_state,
            prompts,
            [row.tokens for row in found],
            windows,
            vocabulary=self._vocabulary,
        )
        return [replace(row, times=each) for row, each in zip(found, times, strict=True)]

    def _aligned_anew(
        self, samples: Samples, chunks: Sequence[Chunk], found: Sequence[Row], decoding: Decoding
    ) -> list[Row]:
        """Find out when each token of the long form's segments was said, each in a window of its own."""
        done: list[Row] = []
        for first in range(0, len(chunks), decoding.batch_size):
            part = slice(first, first + decoding.batch_size)
            windows = [samples[chunk.start : chunk.end][: self._features.samples] for chunk in chunks[part]]
            with torch.inference_mode():
                encoded = encode(self._model, self._features(windows))
                done += self._aligned(encoded, found[part], windows, decoding)
        return done

    def _prompts(self, languages: Sequence[str], decoding: Decoding) -> torch.Tensor:
        """Return what stands before the text of each row, as ids [rows, prompt]."""
        return torch.tensor(self._abilities.prompts(languages, decoding), device=self._model.device)

    def _chosen(self, languages: str | list[str], decoding: Decoding) -> dict[str, object]:
        """Return what the prompt says, as `generate` takes it: nothing for a model that knows only English."""
        named = f"<|{languages}|>" if isinstance(languages, str) else [f"<|{code}|>" for code in languages]
        chosen: dict[str, object] = {"language": named} if self._abilities.languages else {}
        return chosen | ({"task": decoding.task} if self._abilities.tasks else {})

    def _refuse_nan(self, numbers: Sequence[float]) -> None:
        if any(map(math.isnan, numbers)):
            raise TranscriptionError(f"{self.facts.id} gave NaN in {self.facts.dtype}: try --dtype float32")
