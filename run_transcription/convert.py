"""Make and open the artefacts of other engines than torch: an engine's own form of a model, baked as torch's state is.

What an artefact is stands in `engines/artefact.py`. The loader's strategies use this module: `gpu_state` is an artefact
that was made beforehand and is verified; `standard` converts the checkpoint for this one process.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import options
from run_transcription.engines import artefact, fingerprint, kinds, model_folder
from run_transcription.errors import TranscriptionError, Unavailable
from run_transcription.records import DTYPES, ENGINES, ModelFacts, ModelFolder, ModelSpec

if TYPE_CHECKING:
    from run_transcription.engines.artefact import Artefact
    from run_transcription.engines.golden import Golden
    from run_transcription.records import Engine

logger = logging.getLogger(__name__)


def baked(spec: ModelSpec, source: ModelFolder | None, device: str) -> Engine:
    """Return the engine of an artefact that was made beforehand; with --dtype auto it is the artefact that says it.

    Raises Unavailable where there is none, it was made of something else, or this device has not its dtype;
    TranscriptionError where it is damaged.
    """
    folder = model_folder.state_folder(spec)
    found = artefact.read(folder, spec.engine)
    named = ModelSpec(found.made_from.model_id, dtype=spec.dtype) if _is_named(spec, folder) else spec
    fingerprint.require_same(found.made_from, fingerprint.wanted(named, source, artefact.FORMAT_VERSION))
    maker = kinds.maker(spec.engine)
    try:
        maker.dtype(found.made_from.dtype, device)
    except TranscriptionError as error:
        raise Unavailable(f"it was made in another dtype than this device has: {error}") from error
    artefact.verify(folder, found)
    return maker.open_artefact(folder, _facts(spec.engine, found.made_from, device))


def converted(spec: ModelSpec, source: ModelFolder | None, device: str) -> Engine:
    """Return the engine of a checkpoint that is converted for this process alone; fetches it where it is not here."""
    if source is None and _is_named(spec, model_folder.state_folder(spec)):
        raise Unavailable(f"{spec.model} is no checkpoint, from which it could be converted")
    maker = kinds.maker(spec.engine)
    dtype = maker.dtype(spec.dtype, device)
    source = source or model_folder.download(spec)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _fill(source, folder, spec.engine, dtype)
        return maker.open_artefact(folder, _facts_of(spec.engine, source, dtype, device))


def make(source: ModelFolder, folder: Path, engine: str, dtype: str, device: str) -> Artefact:
    """Make the artefact of a model in a folder, and prove it: it is there in whole, or the old one stays.

    The golden clip is heard by the artefact. In float32 its words have to be those of the checkpoint on torch; fewer
    bits may hear something else, which is logged. Raises TranscriptionError where they differ, or nothing can be
    written.
    """
    from run_transcription.engines import golden, state_writer

    state_writer.require_place(folder, model_folder.MANIFEST)  # before minutes of work
    maker = kinds.maker(engine)
    wanted = _heard_by_torch(source)
    logger.info("converting %s for %s in %s to %s", source.id, engine, dtype, folder)
    try:
        with state_writer.replacing(folder, model_folder.MANIFEST) as new:
            _fill(source, new, engine, dtype)
            able = _able(engine, dtype, device)
            heard = golden.hear(maker.open_artefact(new, _facts_of(engine, source, able, device)))
            if heard.words != wanted.words:
                said = f"{engine} hears something else in {dtype}: {golden.difference(heard, wanted)}"
                if dtype == "float32":
                    raise TranscriptionError(f"{source.id} was not converted well: {said}")
                logger.warning("%s", said)
            made_from = fingerprint.fingerprint(source, dtype, artefact.FORMAT_VERSION)
            return artefact.write(new, engine, made_from, source.stamps, heard)
    except OSError as error:
        raise TranscriptionError(f"{folder} could not be written: {error.strerror or error}") from error


def known_source(spec: ModelSpec) -> ModelFolder:
    """Return the checkpoint that a spec's artefact was made from, as it was then. Raises what `artefact.read` does."""
    folder = model_folder.state_folder(spec)
    found = artefact.read(folder, spec.engine)
    return ModelFolder(found.made_from.model_id, folder, found.made_from.revision, found.stamps)


def read_golden(spec: ModelSpec) -> Golden:
    """Return what a spec's artefact made of the golden clip. Raises what `artefact.read` does."""
    return artefact.read(model_folder.state_folder(spec), spec.engine).heard


def files(spec: ModelSpec) -> list[Path]:
    """Return the files of a spec's artefact; none where there is none that can be read."""
    folder = model_folder.state_folder(spec)
    try:
        return [folder / name for name in artefact.read(folder, spec.engine).files]
    except TranscriptionError:
        return []


def _fill(source: ModelFolder, folder: Path, engine: str, dtype: str) -> None:
    """Write all of an artefact but its manifest; both configs are completed, so that nothing else has to know how."""
    from run_transcription.engines import assemble, vocabulary
    from run_transcription.engines.abilities import abilities

    for path in model_folder.small_files(source.path):
        shutil.copyfile(path, folder / path.name)
    config = assemble.read_config(source.path)
    settings = assemble.read_generation_config(source.path, config)
    abilities(source.id, config, settings, vocabulary.read(source.path))
    (folder / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")
    (folder / "generation_config.json").write_text(settings.to_json_string(), encoding="utf-8")
    kinds.maker(engine).convert(source.path, folder / artefact.MODEL, dtype)


def _heard_by_torch(source: ModelFolder) -> Golden:
    from run_transcription.engines import golden, vocabulary
    from run_transcription.engines.assemble import mapped_model
    from run_transcription.engines.torch_engine import TorchEngine

    facts = ModelFacts(source.id, source.revision, "cpu", "float32", "sdpa")
    model = mapped_model(source.path, "float32", "sdpa")
    return golden.hear(TorchEngine(model, vocabulary.read(source.path), facts))


def _able(engine: str, dtype: str, device: str) -> str:
    """Return a dtype in which this device can run weights in that one; it may be made for another device."""
    try:
        return kinds.maker(engine).dtype(dtype, device)
    except TranscriptionError:
        return kinds.maker(engine).dtype("float32", device)


def _facts(engine: str, made_from: fingerprint.Fingerprint, device: str) -> ModelFacts:
    return ModelFacts(made_from.model_id, made_from.revision, device, made_from.dtype, engine, engine)


def _facts_of(engine: str, source: ModelFolder, dtype: str, device: str) -> ModelFacts:
    return ModelFacts(source.id, source.revision, device, dtype, engine, engine)


def _is_named(spec: ModelSpec, folder: Path) -> bool:
    """Tell whether --model is the artefact's own folder."""
    return folder == Path(spec.model).expanduser()


@options.command("convert")
@click.option("--model", show_default=f"the image's model, else {options.DEFAULT_MODEL}", help="Id, folder, or `demo`.")
@click.option("--revision", help="Commit, tag or branch of a Hugging Face model.")
@click.option("--engine", type=click.Choice(ENGINES[1:]), default=ENGINES[1], help="For which engine.")
@click.option("--quantization", type=click.Choice(DTYPES), default="int8", help="The dtype of the weights.")
@click.option("--output", type=click.Path(path_type=Path), show_default="the home folder", help="The folder to make.")
def main(model: str | None, revision: str | None, engine: str, quantization: str, output: Path | None) -> None:
    """Make a model's own form for another engine.

    It is read back, proved on the golden clip, and reported. `--engine` finds it in the home folder by itself; one that
    was made elsewhere is named as --model. An older one stays until all of that went well.
    """
    from run_transcription.engines import hardware

    kinds.require_installed(engine)
    spec = ModelSpec(model or options.default_model(), revision, engine=engine)
    source = model_folder.resolve(spec)
    folder = output or model_folder.state_folder(spec)
    began = time.perf_counter()
    made = make(source, folder, engine, quantization, hardware.device("auto"))
    seconds = time.perf_counter() - began
    before = sum(path.stat().st_size for path in model_folder.weight_files(source.path))
    click.echo(f"made      {folder} in {seconds:.2f} s")
    click.echo(f"model     {source.id} at {source.revision}")
    click.echo(
        f"content   {made.size / 1e6:.1f} MB, {quantization}; the checkpoint's weights have {before / 1e6:.1f} MB"
    )
    click.echo(f"golden    {len(made.heard.tokens)} tokens in {made.heard.dtype}: {' '.join(made.heard.words)}")
    click.echo(f"use it    run-transcription transcribe --engine {engine} --model {output or spec.model}")
