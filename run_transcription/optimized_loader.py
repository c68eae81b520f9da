"""ModelSpec → ModelHandle, by the first strategy that works: GPU state, mapped weights, transformers' own way."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from run_transcription import gpu_memory_persist, options
from run_transcription.engines.model_folder import download, on_this_machine, resolve
from run_transcription.errors import ModelNotLoaded, TranscriptionError, Unavailable
from run_transcription.records import (
    SAMPLE_RATE,
    Decoding,
    Fingerprint,
    LoadReport,
    ModelFacts,
    ModelFolder,
    ModelHandle,
    ModelSpec,
    Skipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import WhisperForConditionalGeneration

__all__ = ["STRATEGIES", "Strategy", "load", "resolve"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A spec with device and dtype resolved; `source` is None while the model is not on this machine."""

    spec: ModelSpec
    source: ModelFolder | None
    state: Path
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, and the folder with its tokenizer."""

    model: WhisperForConditionalGeneration
    folder: ModelFolder


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to load a model; it raises Unavailable where it does not apply."""

    name: str
    load: Callable[[Request], Loaded]


def load_gpu_state(request: Request) -> Loaded:
    """Read a state made beforehand; with --dtype auto it is the state that says the dtype."""
    made_from = gpu_memory_persist.read_fingerprint(request.state)
    wanted = _wanted_state(request)
    gpu_memory_persist.require_same(made_from, wanted)
    if made_from.dtype == "bfloat16" and not _bfloat16_here(request.device):
        raise Unavailable("the state is in bfloat16, which this GPU has not")
    model = gpu_memory_persist.load_state(request.state, made_from, request.device, request.spec.attention)
    return Loaded(model, ModelFolder(made_from.model_id, request.state, made_from.revision))


def load_mapped(request: Request) -> Loaded:
    """Map the checkpoint's safetensors; on a CPU in the checkpoint's own dtype nothing is copied."""
    from run_transcription.engines.assemble import mapped_model

    source = request.source or download(request.spec)
    with _errors_told(source):
        return Loaded(mapped_model(source.path, request.dtype, request.spec.attention).to(request.device), source)


def load_standard(request: Request) -> Loaded:
    """Let transformers load the checkpoint its own way: slowest, and with the fewest assumptions."""
    import torch
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging as progress

    from run_transcription.engines.assemble import read_config, read_generation_config

    progress.disable_progress_bar()
    source = request.source or download(request.spec)
    config = read_config(source.path)
    with _errors_told(source):
        model, said = WhisperForConditionalGeneration.from_pretrained(
            source.path,
            dtype=getattr(torch, request.dtype),
            attn_implementation=request.spec.attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    if said["missing_keys"] or said["unexpected_keys"]:
        raise Unavailable(
            f"the weights lack {len(said['missing_keys'])} tensors and have {len(said['unexpected_keys'])} too many"
        )
    model.generation_config = read_generation_config(source.path, config)
    return Loaded(model.to(request.device), source)


@contextmanager
def _errors_told(source: ModelFolder) -> Iterator[None]:
    """Say in one line what the libraries find wrong with a checkpoint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise TranscriptionError(f"{source.path} can't be loaded: {' '.join(str(error).split())}") from error


STRATEGIES = (
    Strategy("gpu_state", load_gpu_state),
    Strategy("mmap", load_mapped),
    Strategy("standard", load_standard),
)


def load(spec: ModelSpec, strategies: tuple[Strategy, ...] = STRATEGIES) -> ModelHandle:
    """Return the first handle that a strategy can produce; keep what was skipped, and why.

    Raises ModelNotLoaded where none can, or where there is no such model, device or attention.
    """
    request = _request(spec)
    skipped: list[Skipped] = []
    for strategy in strategies:
        began = time.perf_counter()
        try:
            return _handle(request, strategy, began, tuple(skipped))
        except ModelNotLoaded:
            raise
        except Unavailable as reason:
            skipped.append(Skipped(strategy.name, str(reason)))
            logger.info("%s does not apply: %s", strategy.name, reason)
        except Exception as error:
            skipped.append(Skipped(strategy.name, " ".join(str(error).split()) or type(error).__name__))
            unexpected = not isinstance(error, TranscriptionError)
            logger.warning("%s failed: %s", strategy.name, skipped[-1].reason, exc_info=unexpected)
    reasons = "; ".join(f"{skip.strategy}: {skip.reason}" for skip in skipped)
    raise ModelNotLoaded(f"the model {spec.model} could not be loaded: {reasons}")


def _request(spec: ModelSpec) -> Request:
    """Find the model before torch is imported, which takes seconds: a model that is not there is said at once."""
    source = on_this_machine(spec)
    state = gpu_memory_persist.state_folder(spec, source)
    if source is None and not state.exists():
        source = download(spec)
    _import_libraries()
    device = _device(spec.device)
    _check_attention(spec.attention, device)
    return Request(spec, source, state, device, _dtype(spec.dtype, device))


def _import_libraries() -> None:
    """Import what every strategy needs: it takes seconds, which are not those of the first one that is tried."""
    from transformers import WhisperForConditionalGeneration  # noqa: F401

    from run_transcription.engines import torch_engine  # noqa: F401


def _handle(request: Request, strategy: Strategy, began: float, skipped: tuple[Skipped, ...]) -> ModelHandle:
    """Load the model, here so that nothing of it is left in memory when this fails and the next strategy begins."""
    from run_transcription.engines import vocabulary
    from run_transcription.engines.torch_engine import TorchEngine

    loaded = strategy.load(request)
    folder, dtype = loaded.folder, str(loaded.model.dtype).removeprefix("torch.")
    facts = ModelFacts(folder.id, folder.revision, request.device, dtype, request.spec.attention)
    engine = TorchEngine(loaded.model, vocabulary.read(folder.path), facts)
    seconds = time.perf_counter() - began
    logger.info("%s loaded by %s in %.2f s: %s on %s", folder.id, strategy.name, seconds, dtype, request.device)
    return ModelHandle(engine, LoadReport(strategy.name, seconds, skipped))


def _wanted_state(request: Request) -> Fingerprint:
    """Return what a state must have been made from; "" where it may be anything, as when only the state is here."""
    source, spec = request.source, request.spec
    return Fingerprint(
        format_version=gpu_memory_persist.FORMAT_VERSION,
        model_id=source.id if source is not None else spec.model,
        revision=source.revision if source is not None else spec.revision or "",
        content_sha256="",  # the revision stands for it: a commit, or a hash of the folder's content
        config_sha256="",
        dtype="" if spec.dtype == "auto" else spec.dtype,
    )


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelNotLoaded(
            f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu, or look at nvidia-smi"
        )
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(wanted: str, device: str) -> str:
    """Resolve auto: float16 on a GPU; on a CPU bfloat16 where it multiplies matrices natively, else float32."""
    import torch

    if wanted == "bfloat16" and not _bfloat16_here(device):
        raise ModelNotLoaded("--dtype bfloat16: this GPU has not got it; use --dtype float16")
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return "float16"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


def _bfloat16_here(device: str) -> bool:
    import torch

    return device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def _check_attention(attention: str, device: str) -> None:
    from transformers.utils import is_flash_attn_2_available

    if attention == "flash_attention_2" and (device != "cuda" or not is_flash_attn_2_available()):
        raise ModelNotLoaded(
            "--attention flash_attention_2 wants a GPU and the package flash-attn; use --attention sdpa"
        )


@options.command("load")
@click.argument("action", type=click.Choice(["test"]), default="test")
@options.model_options
def main(spec: ModelSpec, action: str) -> None:  # noqa: ARG001 - there is only one; its name is the seed's
    """Try every way to load the model, and say which work and whether they decode alike."""
    decoded: dict[str, list[tuple[int, ...]]] = {}
    click.echo(f"{'strategy':<10} {'seconds':>8}  result")
    for strategy in STRATEGIES:
        try:
            handle = load(spec, (strategy,))
        except ModelNotLoaded as error:
            click.echo(f"{strategy.name:<10} {'-':>8}  {error}")
            continue
        decoded[strategy.name] = _probe(handle)
        facts = handle.engine.facts
        alike = "" if decoded[strategy.name] == next(iter(decoded.values())) else ", decodes differently from the first"
        click.echo(f"{strategy.name:<10} {handle.load.seconds:>8.2f}  {facts.dtype} on {facts.device}{alike}")
    if not decoded:
        sys.exit(1)


def _probe(handle: ModelHandle) -> list[tuple[int, ...]]:
    """Decode a second of a tone: a model that is not whole writes something else, or nothing."""
    import numpy as np

    tone = np.sin(np.arange(SAMPLE_RATE) * (2 * np.pi * 440 / SAMPLE_RATE)).astype(np.float32)
    return [row.tokens for row in handle.engine.transcribe([tone], Decoding()).rows]


if __name__ == "__main__":
    main()
