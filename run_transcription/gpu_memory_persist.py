"""The state of a model on disk: its tensors as the device will hold them, in one file that is read straight through.

A state is a folder: `state.safetensors` and, beside it, the model's small files (config, tokenizer). The file is a
strictly valid safetensors file: the header padded so that the data begins at a multiple of 4096 bytes, the tensors in
the order of their use, in their final dtype, tied ones once. Its metadata have the fingerprint of what it was made
from, what the model makes of the golden clip, a checksum of each 16 MiB of data, and one of the header itself.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import options
from run_transcription.engines import fingerprint as fingerprints
from run_transcription.engines import model_folder
from run_transcription.engines.fingerprint import Fingerprint, config_sha256, require_same
from run_transcription.engines.state_header import Header, read_header
from run_transcription.engines.state_reader import STATE_FILE, Reading, State, golden_of, open_state, view
from run_transcription.errors import ModelNotLoaded, TranscriptionError
from run_transcription.records import ModelFacts, ModelFolder, ModelSpec
from run_transcription.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import WhisperForConditionalGeneration

    from run_transcription.engines.golden import Golden
    from run_transcription.records import Engine

__all__ = ["STATE_FILE", "load_state", "open_state", "preload_gpu_model", "save_state"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = "3"


def fingerprint(source: ModelFolder, dtype: str) -> Fingerprint:
    """Return what a state of this model in this dtype is made from; reads all of the weights once."""
    return fingerprints.fingerprint(source, dtype, FORMAT_VERSION)


def preload_gpu_model(
    source: ModelFolder, folder: Path, dtype: str = "float16", device: str = "cpu", attention: str = "sdpa"
) -> Header:
    """Make the state of a model in a folder, and prove it: it is there in whole, or the old one stays.

    The golden clip is heard on the device on which the state will most likely be used, by the model and by the one
    that is made of the new state. Raises TranscriptionError where they differ, or the state can't be written.
    """
    from run_transcription.engines import golden, state_writer
    from run_transcription.engines.assemble import mapped_model

    state_writer.require_place(folder)  # before minutes of work
    model = mapped_model(source.path, dtype, attention)
    generation_config = model.generation_config.to_json_string()  # an engine completes it, so: before
    logger.info("hearing the golden clip in %s on %s", dtype, device)
    heard = golden.hear(_engine(model.to(device), source))

    def prove(new: Path) -> None:
        logger.info("reading the state back, and hearing the golden clip again")
        again = golden.hear(_engine(load_state(new, None, device, attention), source))
        if (wrong := golden.difference(again, heard)) is not None:
            raise TranscriptionError(f"the state of {source.id} does not transcribe as the model does: {wrong}")

    facts = metadata(fingerprint(source, dtype), heard, generation_config)
    return save_state(model, folder, source, facts, prove)


def metadata(made_from: Fingerprint, heard: Golden, generation_config: str) -> dict[str, str]:
    """Return what a state knows of its model."""
    more = {"generation_config": generation_config, "golden": json.dumps(asdict(heard), ensure_ascii=False)}
    return asdict(made_from) | more


def save_state(
    model: WhisperForConditionalGeneration,
    folder: Path,
    source: ModelFolder,
    facts: dict[str, str],
    prove: Callable[[Path], None] = lambda _: None,
) -> Header:
    """Write a model's state under a temporary name, compare it with the model, and only then give it its name.

    `prove` gets the folder under its temporary name, and raises what is wrong with it.
    """
    from run_transcription.engines import state_writer

    tensors = state_writer.tensors_of(model)
    logger.info("writing %.1f MB to %s", sum(tensor.nbytes for tensor in tensors.values()) / 1e6, folder)
    try:
        with state_writer.replacing(folder) as new:
            for path in model_folder.small_files(source.path):
                shutil.copyfile(path, new / path.name)
            state_writer.write(new / STATE_FILE, tensors, facts | {"source_stamps": source.stamps})
            state_writer.compare(new, tensors)
            prove(new)
    except OSError as error:
        raise TranscriptionError(f"the state {folder} could not be written: {error.strerror or error}") from error
    return read_header(folder / STATE_FILE)


def read_fingerprint(folder: Path) -> Fingerprint:
    """Return what the state in a folder was made from. Raises Unavailable where there is no state."""
    with open_state(folder) as state:
        return state.made_from


def read_golden(folder: Path) -> Golden:
    """Return what the model of a folder's state made of the golden clip. Raises Unavailable where there is no state."""
    with open_state(folder) as state:
        return golden_of(state)


def known_source(state: State, folder: Path) -> ModelFolder:
    """Return the model folder that a state was made from, as it was then."""
    return ModelFolder(state.made_from.model_id, folder, state.made_from.revision, state.stamps)


def begin(folder: Path, wanted: Fingerprint | None, *, gpu: bool) -> Reading:
    """Begin to read a state, without torch. `wanted` None takes whatever the state was made from.

    Raises Unavailable where there is no state or it was made from something else, TranscriptionError where its header
    or one of the small files is damaged.
    """
    with ExitStack() as undo:
        state = undo.enter_context(open_state(folder))
        require_same(state.made_from, wanted or state.made_from)
        if state.made_from.config_sha256 != config_sha256(folder):
            raise TranscriptionError(
                f"the state in {folder} is damaged: the small files beside it are not those that it was made with"
            )
        reading = Reading(state, gpu=gpu)
        undo.pop_all()
    return reading


def require_unchanged(reading: Reading) -> None:
    """Raise TranscriptionError where the small files beside a state were replaced since its reading began.

    The state itself is an open file, which stays what it is.
    """
    state = reading.state
    if state.made_from.config_sha256 != config_sha256(state.folder):
        raise TranscriptionError(f"the state in {state.folder} was replaced while it was read")


def load_state(
    folder: Path, wanted: Fingerprint | None, device: str, attention: str = "sdpa"
) -> WhisperForConditionalGeneration:
    """Return the model of a state, its parameters being views of one allocation on the device.

    Every byte is checked before a tensor is used. Raises what `begin` raises, and TranscriptionError where the data
    are damaged.
    """
    with begin(folder, wanted, gpu=device != "cpu") as reading:
        return finish(reading, device, attention, Timeline())


def finish(reading: Reading, device: str, attention: str, timeline: Timeline) -> WhisperForConditionalGeneration:
    """Return the model of a state that is being read; it is made while the bytes arrive, then filled with them."""
    import torch

    from run_transcription.engines.assemble import empty_model, fill, generation_config

    state = reading.state
    with timeline.stage("empty model"):
        model = empty_model(state.folder, getattr(torch, state.made_from.dtype), attention)
        model.generation_config = generation_config(json.loads(state.header.metadata["generation_config"]))
    data = reading.tensor(device, timeline)
    with timeline.stage("assign"):
        fill(model, {entry.name: view(data, entry) for entry in state.header.tensors}, state.folder)
    return model


def _engine(model: WhisperForConditionalGeneration, source: ModelFolder) -> Engine:
    from run_transcription.engines import vocabulary
    from run_transcription.engines.torch_engine import TorchEngine

    dtype = str(model.dtype).removeprefix("torch.")
    attention = model.config._attn_implementation  # noqa: SLF001
    facts = ModelFacts(source.id, source.revision, model.device.type, dtype, attention)
    return TorchEngine(model, vocabulary.read(source.path), facts)


@options.command("preload")
@options.model_options
def main(spec: ModelSpec) -> None:
    """Make the state of a model, which loads faster.

    It is read back, compared with the model, proved on the golden clip, and reported. It has one dtype, which with
    --dtype auto is float16 here, and lies in TRANSCRIBE_HOME. An older state stays until all of that went well.
    """
    if spec.engine != "torch":
        raise ModelNotLoaded(f"--engine {spec.engine}: this is torch's state; use run-transcription convert")
    source = model_folder.resolve(spec)
    from run_transcription.engines import hardware

    folder = model_folder.state_folder(spec)
    device = hardware.device(spec.device)
    dtype = hardware.dtype("float16" if spec.dtype == "auto" else spec.dtype, device)
    hardware.check_attention(spec, device)
    import transformers.models.whisper.modeling_whisper  # noqa: F401 - its seconds are not those of saving

    began = time.perf_counter()
    header = preload_gpu_model(source, folder, dtype, device, spec.attention)
    seconds = time.perf_counter() - began
    kept = json.loads(header.metadata["golden"])
    click.echo(f"state     {folder}")
    click.echo(f"model     {source.id} at {source.revision}")
    click.echo(f"content   {len(header.tensors)} tensors, {header.size / 1e6:.1f} MB, {dtype}")
    click.echo(f"saved     in {seconds:.2f} s")
    click.echo("verified  every checksum right, every parameter in place, every bit the model's")
    click.echo(f"golden    {len(kept['tokens'])} tokens as from the model, on {device}: {' '.join(kept['words'])}")


if __name__ == "__main__":
    main()
