"""ModelSpec → ModelHandle, by the first strategy that works: GPU state, mapped weights, transformers' own way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import click

from run_transcription import convert, gpu_memory_persist, options
from run_transcription.engines import fingerprint, hardware, kinds, trial
from run_transcription.engines.golden import Golden
from run_transcription.engines.model_folder import download, on_this_machine, resolve, state_folder, weight_files
from run_transcription.engines.state_reader import Reading, gpu_expected
from run_transcription.errors import ModelNotLoaded, TranscriptionError, Unavailable
from run_transcription.records import Engine, LoadReport, ModelFacts, ModelFolder, ModelHandle, ModelSpec, Skipped
from run_transcription.timeline import Timeline

if TYPE_CHECKING:
    from transformers import WhisperForConditionalGeneration

__all__ = ["STRATEGIES", "Strategy", "load", "resolve"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A spec with device and dtype resolved; `source` is None while the model is not on this machine."""

    spec: ModelSpec
    source: ModelFolder | None
    device: str
    dtype: str
    reading: Reading | None  # of its state, where that fits; begun before torch was imported
    timeline: Timeline


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to load a model; it raises Unavailable where it does not apply."""

    name: str
    load: Callable[[Request], Engine]


def load_gpu_state(request: Request) -> Engine:
    """Read a state made beforehand; with --dtype auto it is the state that says the dtype."""
    if request.spec.engine != "torch":
        return convert.baked(request.spec, request.source, request.device)
    reading = request.reading or _begin_reading(request.spec, request.source)
    with reading:
        made_from, folder = reading.state.made_from, reading.state.folder
        if made_from.dtype == "bfloat16" and not hardware.has_bfloat16(request.device):
            raise Unavailable("the state is in bfloat16, which this GPU has not")
        model = gpu_memory_persist.finish(reading, request.device, request.spec.attention, request.timeline)
        engine = _on_torch(request, model, ModelFolder(made_from.model_id, folder, made_from.revision))
        gpu_memory_persist.require_unchanged(reading)
    return engine


def load_mapped(request: Request) -> Engine:
    """Map the checkpoint's safetensors; on a CPU in the checkpoint's own dtype nothing is copied."""
    if request.spec.engine != "torch":
        raise Unavailable(f"{request.spec.engine} reads no checkpoint")
    from run_transcription.engines.assemble import errors_told, mapped_model

    source = request.source or download(request.spec)
    with errors_told(source.path):
        model = mapped_model(source.path, request.dtype, request.spec.attention).to(request.device)
    return _on_torch(request, model, source)


def load_standard(request: Request) -> Engine:
    """Let transformers load the checkpoint its own way: slowest, and with the fewest assumptions.

    For another engine than torch the checkpoint is converted.
    """
    if request.spec.engine != "torch":
        return convert.converted(request.spec, request.source, request.device)
    import torch
    from transformers import WhisperForConditionalGeneration
    from transformers.utils import logging as progress

    from run_transcription.engines.assemble import errors_told, making, read_config, read_generation_config

    progress.disable_progress_bar()
    source = request.source or download(request.spec)
    config = read_config(source.path)
    with errors_told(source.path), making:
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
    return _on_torch(request, model.to(request.device), source)


def _on_torch(request: Request, model: WhisperForConditionalGeneration, source: ModelFolder) -> Engine:
    from run_transcription.engines import vocabulary
    from run_transcription.engines.torch_engine import TorchEngine

    dtype = str(model.dtype).removeprefix("torch.")
    facts = ModelFacts(source.id, source.revision, request.device, dtype, request.spec.attention)
    return TorchEngine(model, vocabulary.read(source.path), facts)


STRATEGIES = (
    Strategy("gpu_state", load_gpu_state),
    Strategy("mmap", load_mapped),
    Strategy("standard", load_standard),
)


def load(
    spec: ModelSpec, strategies: tuple[Strategy, ...] = STRATEGIES, timeline: Timeline | None = None
) -> ModelHandle:
    """Return the first handle that a strategy can produce; keep what was skipped, and why.

    A state that fits is read while the libraries are imported. Raises ModelNotLoaded where no strategy can load the
    model, or where there is no such model, engine, device or attention.
    """
    kinds.require_installed(spec.engine)
    timeline = timeline or Timeline()
    source = _source(spec)
    with _read_early(spec, source, strategies) as reading:
        _import_libraries(spec, timeline)
        device = hardware.device(spec.device)
        hardware.check_attention(spec, device)
        own = hardware if spec.engine == "torch" else kinds.maker(spec.engine)
        dtype = own.dtype(spec.dtype, device)
        return _first(Request(spec, source, device, dtype, reading, timeline), strategies)


def _first(request: Request, strategies: tuple[Strategy, ...]) -> ModelHandle:
    skipped: list[Skipped] = []
    for strategy in strategies:
        began = time.perf_counter()
        try:
            return _handle(request, strategy, began, tuple(skipped))
        except Unavailable as reason:
            skipped.append(Skipped(strategy.name, str(reason)))
            logger.info("%s does not apply: %s", strategy.name, reason)
        except Exception as error:
            skipped.append(Skipped(strategy.name, " ".join(str(error).split()) or type(error).__name__))
            unexpected = not isinstance(error, TranscriptionError)
            remedy = f"; to make it anew: run-transcription preload --model {request.spec.model}"
            more = remedy if strategy.load is load_gpu_state and request.spec.engine == "torch" else ""
            logger.warning("%s failed: %s%s", strategy.name, skipped[-1].reason, more, exc_info=unexpected)
    if len(strategies) == 1:
        raise ModelNotLoaded(skipped[0].reason)
    reasons = "; ".join(
        f"{', '.join(skip.strategy for skip in skipped if skip.reason == reason)}: {reason}"
        for reason in dict.fromkeys(skip.reason for skip in skipped)
    )
    raise ModelNotLoaded(f"the model {request.spec.model} could not be loaded: {reasons}")


def _source(spec: ModelSpec) -> ModelFolder | None:
    """Find the model before torch is imported, which takes seconds: a model that is not there is said at once.

    None where only its state is here, and nothing can be said of the checkpoint.
    """
    folder = state_folder(spec)
    try:
        known = _known(spec)
    except TranscriptionError:  # whoever loads the state will say what is wrong with it
        known = None
    source = on_this_machine(spec, known)
    return source if source is not None or folder.exists() else download(spec)


def _known(spec: ModelSpec) -> ModelFolder:
    """Return what a spec's state or artefact was made from, as it was then."""
    if spec.engine != "torch":
        return convert.known_source(spec)
    folder = state_folder(spec)
    with gpu_memory_persist.open_state(folder) as state:
        return gpu_memory_persist.known_source(state, folder)


def _read_early(
    spec: ModelSpec, source: ModelFolder | None, strategies: tuple[Strategy, ...]
) -> AbstractContextManager[Reading | None]:
    """Begin to read the state where it is wanted and fits; a reason against it is said by its strategy."""
    if spec.engine != "torch" or all(strategy.load is not load_gpu_state for strategy in strategies):
        return nullcontext()
    try:
        return _begin_reading(spec, source)
    except (TranscriptionError, OSError):
        return nullcontext()


def _begin_reading(spec: ModelSpec, source: ModelFolder | None) -> Reading:
    gpu = spec.device != "cpu" and gpu_expected()
    wanted = fingerprint.wanted(spec, source, gpu_memory_persist.FORMAT_VERSION)
    return gpu_memory_persist.begin(state_folder(spec), wanted, gpu=gpu)


def _import_libraries(spec: ModelSpec, timeline: Timeline) -> None:
    """Import what every strategy needs: it takes seconds, which are not those of the first one that is tried."""
    with timeline.stage("import torch"):
        import torch  # noqa: F401
    if spec.engine != "torch":
        with timeline.stage(f"import {spec.engine}"):
            kinds.maker(spec.engine)
        return

    def make_context() -> None:
        with timeline.stage("context"):
            hardware.make_context(spec.device)

    with ThreadPoolExecutor(1) as aside:
        context = aside.submit(make_context)
        with timeline.stage("import transformers"):
            from transformers import WhisperForConditionalGeneration  # noqa: F401

            from run_transcription.engines import torch_engine  # noqa: F401
    context.result()


def _handle(request: Request, strategy: Strategy, began: float, skipped: tuple[Skipped, ...]) -> ModelHandle:
    """Load the model, here so that nothing of it is left in memory when this fails and the next strategy begins."""
    engine = strategy.load(request)
    facts, seconds = engine.facts, time.perf_counter() - began
    logger.info("%s loaded by %s in %.2f s: %s on %s", facts.id, strategy.name, seconds, facts.dtype, facts.device)
    return ModelHandle(engine, LoadReport(strategy.name, seconds, skipped))


def read_golden(spec: ModelSpec) -> Golden:
    """Return what a spec's state or artefact made of the golden clip. Raises Unavailable where there is none."""
    return convert.read_golden(spec) if spec.engine != "torch" else gpu_memory_persist.read_golden(state_folder(spec))


@options.command("load")
@click.argument("action", type=click.Choice(["test"]), default="test")
@click.option(
    "--require", type=click.Choice([strategy.name for strategy in STRATEGIES]), help="Fail where another one wins."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@options.model_options
def main(spec: ModelSpec, action: str, require: str | None, *, as_json: bool) -> None:  # noqa: ARG001 - the seed's
    """Try every way to load the model.

    Says which work, how fast, and whether all hear the same in the golden clip. A strategy's floor is the time in
    which its files can merely be read from the page cache. The exit status is 1 where no strategy works, one hears
    something else, or another one than the required one wins.
    """
    source = _source(spec)
    _import_libraries(spec, Timeline())
    state = [state_folder(spec) / gpu_memory_persist.STATE_FILE] if spec.engine == "torch" else convert.files(spec)
    checkpoint = weight_files(source.path) if source is not None else []
    trials: list[trial.Trial] = []
    for strategy in STRATEGIES:
        right = _right(spec, strategy, trials)
        floor = trial.floor(state if strategy.load is load_gpu_state else checkpoint)
        trials.append(trial.attempt(strategy.name, partial(load, spec, (strategy,)), right, floor))
        if (found := trials[-1].facts) is not None:  # a state says the dtype: the others are compared in the same
            spec = replace(spec, dtype=found.dtype)
    problems = trial.problems(trials, require)
    click.echo(trial.as_json(trials, spec.model, problems) if as_json else trial.table(trials))
    for problem in problems:
        click.echo(problem, err=True)
    sys.exit(1 if problems else 0)


def _right(spec: ModelSpec, strategy: Strategy, trials: list[trial.Trial]) -> Golden | None:
    """Return what the golden clip should give: what the first strategy heard, which should be what the state says."""
    if (heard := next((before.heard for before in trials if before.heard is not None), None)) is not None:
        return heard
    try:
        return read_golden(spec) if strategy.load is load_gpu_state else None
    except TranscriptionError:  # the strategy itself says what is wrong with the state
        return None


if __name__ == "__main__":
    main()
