"""Read a model's state, and then what torch maps, into the page cache, while the machine still boots."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from run_transcription import options
from run_transcription.engines import byte_mover, model_folder
from run_transcription.engines.state_reader import STATE_FILE
from run_transcription.records import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable


@options.command("prefetch")
@click.option("--model", show_default=f"the image's model, else {options.DEFAULT_MODEL}", help="Whose state is read.")
@click.option("--threads", type=click.IntRange(min=1), default=byte_mover.THREADS, help="Reads at the same time.")
def prefetch(model: str | None, threads: int) -> None:
    """Read the state into the page cache, as at boot.

    Then the shared objects of torch and CUDA: what starts next finds them in memory. Needs neither torch nor a GPU,
    and is done in the time that the disk takes. What is not there is passed over.
    """
    spec = ModelSpec(model or options.default_model())
    _read("state", state_files(spec), threads)
    _read("torch", shared_objects(), threads)


def state_files(spec: ModelSpec) -> list[Path]:
    """Return the files of a model's state, the large one first."""
    folder = model_folder.state_folder(spec)
    return [folder / STATE_FILE, *model_folder.small_files(folder)]


def shared_objects() -> list[Path]:
    """Return the libraries of torch and of CUDA's wheels beside it, torch's first; finding them imports neither."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return []
    torch = Path(found.origin).parent
    return [*_largest_first(torch.glob("lib/*.so*")), *_largest_first(torch.parent.glob("nvidia/**/lib/*.so*"))]


def _largest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if path.is_file()), key=lambda path: -path.stat().st_size)


def _read(what: str, paths: list[Path], threads: int) -> None:
    began = time.perf_counter()
    size = byte_mover.read_ahead(paths, threads)
    seconds = time.perf_counter() - began
    if size:
        click.echo(f"{what}  {size / 1e6:.1f} MB in {seconds:.2f} s, {size / seconds / 1e9:.2f} GB/s")
    else:
        click.echo(f"{what}  nothing to read{f' in {paths[0].parent}' if paths else ''}")
