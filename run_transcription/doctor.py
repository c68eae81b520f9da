"""What this installation is: versions, device and the way the model would be loaded; and the schema of its results."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib import metadata

import click

from run_transcription import __version__, optimized_loader, options, storage
from run_transcription import schema as result_schema
from run_transcription.engines import kinds
from run_transcription.errors import TranscriptionError
from run_transcription.records import LoadReport, ModelFacts, ModelSpec

REMEDY = "run make setup"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `doctor` found; model and load are None where the model was not loaded, and `problem` says why."""

    version: str
    python: str
    platform: str
    cores: int
    gpu: str | None
    home: str
    packages: dict[str, str | None]  # by name; None: missing
    engines: dict[str, str | None]  # beside torch; None: not installed
    wanted: str
    model: ModelFacts | None
    load: LoadReport | None
    problem: str | None


def examine(spec: ModelSpec) -> Diagnosis:
    """Look at this installation, and load the model for real: nothing else tells which strategy wins."""
    model, load, problem = None, None, None
    try:
        handle = optimized_loader.load(spec)
        model, load = handle.engine.facts, handle.load
    except TranscriptionError as error:
        problem = str(error)
    except (ImportError, OSError) as error:  # a package is missing, or a library that it needs
        problem = f"{error}: {REMEDY}"
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=_gpu(),
        home=str(storage.home()),
        packages={name: _version(name) for name in _needed()},
        engines={name: kinds.version(name) for name in kinds.KINDS},
        wanted=spec.model,
        model=model,
        load=load,
        problem=problem,
    )


@options.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print it as one JSON object.")
@options.model_options
def doctor(spec: ModelSpec, *, as_json: bool) -> None:
    """Say what is installed here, and how the model would be loaded.

    The model is loaded, and fetched first where it is lacking. Exit status 1 if something is missing.
    """
    found = examine(spec)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2, ensure_ascii=False))
    else:
        for name, text in _lines(found):
            click.echo(f"{name:<14} {text}")
    if found.problem or None in found.packages.values():
        sys.exit(1)


@options.command("schema")
def schema() -> None:
    """Print the JSON Schema of results."""
    click.echo(json.dumps(result_schema.schema(), indent=2, ensure_ascii=False))


def _lines(found: Diagnosis) -> list[tuple[str, str]]:
    """Return name and text of each line for a person."""
    lines = [
        ("version", f"{found.version} on Python {found.python}, {found.platform}"),
        ("processor", f"{found.cores} cores"),
        ("gpu", found.gpu or "none that torch sees"),
        ("home", found.home),
        *((name, version or f"MISSING: {REMEDY}") for name, version in found.packages.items()),
        *((name, version or f"not installed, for --engine {name}") for name, version in found.engines.items()),
    ]
    if found.model is None or found.load is None:
        return [*lines, ("model", f"NOT LOADED {options.one_line(found.problem or '')}")]
    attention = f", attention {found.model.attention}" if found.model.engine == "torch" else ""
    return [
        *lines,
        ("model", f"{found.model.id}, revision {found.model.revision}"),
        ("runs on", f"{found.model.engine}, {found.model.device}, {found.model.dtype}{attention}"),
        ("loaded by", f"{found.load.strategy}, in {found.load.seconds:.2f} s"),
        *((f"not by {skip.strategy}", skip.reason) for skip in found.load.skipped),
    ]


def _needed() -> list[str]:
    """Return the names of the packages that this one requires, those of extras left out; or its own, being absent."""
    try:
        requirements = [line for line in metadata.requires("run-transcription") or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return ["run-transcription"]
    return sorted(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in requirements)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    """Return the name of the GPU that torch would use."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
