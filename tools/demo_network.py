"""The demo model's network, what only its training needs, and how it is written to disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import demo_speech
import demo_vocabulary
import numpy as np
import torch
from demo_examples import IGNORE, VOCABULARY, WORD_CLASS, Tensors
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

FOLDER = demo_speech.ROOT / "run_transcription" / "demo" / "model"
GUIDED_HEADS = ((1, 0), (2, 0))  # (decoder layer, head): these become the alignment heads


class LogMel(torch.nn.Module):
    """Whisper's log-mel features: [rows, samples] → [rows, 80, frames]."""

    def __init__(self) -> None:
        super().__init__()
        filters = np.asarray(WhisperFeatureExtractor(feature_size=80).mel_filters, dtype=np.float32)
        self.register_buffer("filters", torch.tensor(filters.T))
        self.register_buffer("window", torch.hann_window(400))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return log-mel features, each row relative to its own maximum."""
        power = torch.stft(samples, 400, 160, window=self.window, return_complex=True)[..., :-1].abs() ** 2
        log = (self.filters @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4


def new_model() -> WhisperForConditionalGeneration:
    """Return the untrained model."""
    end = VOCABULARY.special["<|endoftext|>"]
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=VOCABULARY.size,
            num_mel_bins=80,
            d_model=128,
            encoder_layers=4,
            decoder_layers=4,  # as many as the encoder has: onnxruntime-genai's builder takes them to be equal
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=512,
            decoder_ffn_dim=512,
            max_source_positions=1500,
            max_target_positions=448,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=VOCABULARY.special["<|startoftranscript|>"],
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )


class Trainee(torch.nn.Module):
    """The model with the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.mel = LogMel()
        self.whisper = new_model()
        self.word_head = torch.nn.Linear(128, len(WORD_CLASS) + 1)
        self.place_head = torch.nn.Linear(128, demo_speech.WORDS_IN_A_PHRASE + 1)
        self.positions = self.whisper.model.encoder.embed_positions.weight.data.clone()
        self.seen: dict[tuple[int, str], torch.Tensor] = {}
        for layer in {layer for layer, _ in GUIDED_HEADS}:
            attention = self.whisper.model.decoder.layers[layer].encoder_attn
            for name in ("q_proj", "k_proj"):
                getattr(attention, name).register_forward_hook(self._keep(layer, name))

    def _keep(self, layer: int, name: str) -> Callable[[torch.nn.Module, object, torch.Tensor], None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            self.seen[layer, name] = output

        return hook

    def set_window(self, offset: int, length: int) -> None:
        """Let the encoder see positions [offset, offset + length)."""
        encoder = self.whisper.model.encoder
        encoder.max_source_positions = self.whisper.config.max_source_positions = length
        positions = self.positions[offset : offset + length]
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions, freeze=True)

    def guidance(self, spans: torch.Tensor) -> torch.Tensor:
        """Return the mean −log of the attention that guided heads give to the frames their token is about."""
        rows, tokens = (spans[..., 0] >= 0).nonzero(as_tuple=True)
        losses = []
        for layer, head in GUIDED_HEADS:
            q, k = (self.seen[layer, name][..., head * 64 : head * 64 + 64] for name in ("q_proj", "k_proj"))
            log = ((q / 8) @ k.transpose(1, 2)).float().log_softmax(-1)[rows, tokens]
            place = torch.arange(log.shape[1], device=log.device)
            inside = (place >= spans[rows, tokens, :1]) & (place < spans[rows, tokens, 1:])
            losses.append(-log.masked_fill(~inside, -1e4).logsumexp(-1).mean())
        return torch.stack(losses).mean() if len(rows) else spans.sum() * 0.0

    def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
        """Return the losses by name, and the logits [rows, tokens, vocabulary]."""
        self.set_window(batch.offset, batch.frames.shape[2])
        out = self.whisper(input_features=self.mel(batch.samples), decoder_input_ids=batch.inputs, use_cache=False)
        frames = out.encoder_last_hidden_state
        return {
            "text": cross_entropy(out.logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE),
            "word": cross_entropy(self.word_head(frames).float().flatten(0, 1), batch.frames[:, 0].flatten()),
            "place": cross_entropy(self.place_head(frames).float().flatten(0, 1), batch.frames[:, 1].flatten()),
            "guide": self.guidance(batch.spans),
            "logits": out.logits,
        }


def export(model: Trainee, folder: Path) -> None:
    """Write the model as float16 with configuration, vocabulary and feature settings."""
    model.set_window(0, 1500)
    half = new_model()
    half.load_state_dict(model.whisper.state_dict())
    special = VOCABULARY.special
    half.generation_config = GenerationConfig(
        alignment_heads=[list(pair) for pair in GUIDED_HEADS],
        bos_token_id=special["<|endoftext|>"],
        eos_token_id=special["<|endoftext|>"],
        pad_token_id=special["<|endoftext|>"],
        decoder_start_token_id=special["<|startoftranscript|>"],
        is_multilingual=True,
        lang_to_id={f"<|{code}|>": special[f"<|{code}|>"] for code in demo_vocabulary.WORDS},
        task_to_id={task: special[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=special["<|notimestamps|>"],
        prev_sot_token_id=special["<|startofprev|>"],
        max_initial_timestamp_index=50,
        max_length=448,
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    half.half().save_pretrained(folder)
    demo_vocabulary.save(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
