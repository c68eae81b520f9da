"""Find a model on this machine, or fetch it: `demo`, a folder, or a Hugging Face id → the folder with its files."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import threading
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription import storage
from run_transcription.errors import ModelNotLoaded
from run_transcription.records import ModelFolder, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

DEMO = Path(__file__).parent.parent / "demo" / "model"
MANIFEST = "artefact.json"  # what the folder of another engine's model has
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # one file, or the index of several
SMALL_FILES = (  # all but the weights; those that a checkpoint has
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "normalizer.json",
    "vocab.json",
    "merges.txt",
)
REACH_SECONDS = 1.0  # to find out whether there is a network
_READ = 1 << 20  # bytes
_HUB_ID = re.compile(r"(?!.*(--|\.\.))\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)

logger = logging.getLogger(__name__)


def resolve(spec: ModelSpec) -> ModelFolder:
    """Return the model's folder: from this machine if it is here, else from the network.

    Raises ModelNotLoaded, after REACH_SECONDS where there is neither the model nor a network.
    """
    return on_this_machine(spec) or download(spec)


def on_this_machine(spec: ModelSpec, known: ModelFolder | None = None) -> ModelFolder | None:
    """Return the model's folder without a look at the network; None where only its artefact is here, or nothing yet.

    The content of a local folder is hashed, unless its files have the sizes and times that they had in `known`.
    Raises ModelNotLoaded for a folder in which something is missing, and for a revision of a folder: it has none.
    """
    path = local_folder(spec)
    if path is None:
        return _cached(spec, home(spec) / "models") or _cached(spec, None)
    engine = engine_of(path)
    if engine is not None and engine != spec.engine:
        raise ModelNotLoaded(f"--model {spec.model} was made for another engine: use --engine {engine}")
    if spec.revision is not None:
        raise ModelNotLoaded(
            f"--revision {spec.revision}: --model {spec.model} is a folder, which has no revisions; leave it out"
        )
    return None if engine is not None else _from_folder(path, model_id(spec), known)


def local_folder(spec: ModelSpec) -> Path | None:
    """Return the folder that a spec names; None for a Hugging Face id. Raises ModelNotLoaded where it is neither."""
    path = DEMO if spec.model == "demo" else Path(spec.model).expanduser()
    if _is_folder(path):
        return path
    if path.is_absolute() or spec.model.startswith(("./", "../", "~")) or spec.model.count("/") > 1:
        raise ModelNotLoaded(f"--model {spec.model}: no such folder")
    if not _HUB_ID.fullmatch(spec.model):
        raise ModelNotLoaded(
            f"--model {spec.model} is neither a folder here nor a Hugging Face id such as openai/whisper-tiny"
        )
    return None


def model_id(spec: ModelSpec) -> str:
    """Return the name under which a model's state is kept: the id, or the name of its folder."""
    if spec.model == "demo":
        return spec.model
    path = Path(spec.model).expanduser()
    return path.resolve().name if _is_folder(path) else spec.model


def state_folder(spec: ModelSpec) -> Path:
    """Return where the state of a model lies, or its artefact: under home, by its id, or where --model names it."""
    path = Path(spec.model).expanduser()
    if engine_of(path) == spec.engine:
        return path
    place = "gpu_state" if spec.engine == "torch" else spec.engine
    return home(spec) / place / model_id(spec).replace("/", "--")


def engine_of(path: Path) -> str | None:
    """Return the engine that a folder is an artefact for; None where it is none."""
    try:
        return str(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["engine"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def home(spec: ModelSpec) -> Path:
    """Return where models and states are kept."""
    return spec.home or storage.home()


def small_files(folder: Path) -> list[Path]:
    """Return what a model's folder has beside the weights: config, tokenizer and the like."""
    return [folder / name for name in SMALL_FILES if (folder / name).exists()]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder in a fixed order; none where it has none.

    Raises ModelNotLoaded where the index of several is none.
    """
    whole, index = (folder / name for name in WEIGHTS)
    if whole.exists() or not index.exists():
        return [whole] if whole.exists() else []
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(shards.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelNotLoaded(f"{index} is not an index of weights ({reason}): fetch the model again") from error


def sha256(paths: Iterable[Path]) -> str:
    """Return the sha256 of files, each with its name and its size before it."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(f"\0{path.name}\0{os.fstat(file.fileno()).st_size}\0".encode())
            while block := file.read(_READ):
                digest.update(block)
    return digest.hexdigest()


def download(spec: ModelSpec) -> ModelFolder:
    """Fetch a Hugging Face model into its usual cache, with a progress bar on standard error.

    Raises ModelNotLoaded where there is no network, or no such model.
    """
    if not _reachable():
        raise ModelNotLoaded(
            f"the model {spec.model} is not on this machine and huggingface.co can't be reached: "
            "use --model demo, --model FOLDER, or a network for the first download"
        )
    import huggingface_hub  # only now: it takes a second

    patterns = [*SMALL_FILES, *WEIGHTS, "model-*.safetensors"]
    try:
        about = huggingface_hub.HfApi().model_info(spec.model, revision=spec.revision, files_metadata=True)
        wanted = [file.size or 0 for file in about.siblings or () if any(fnmatch(file.rfilename, p) for p in patterns)]
        logger.info("fetching %s from Hugging Face: %.1f MB", spec.model, sum(wanted) / 1e6)
        path = huggingface_hub.snapshot_download(spec.model, revision=spec.revision, allow_patterns=patterns)
    except (OSError, ValueError, _network_error()) as error:
        raise ModelNotLoaded(f"the model {spec.model} could not be fetched: {_first_line(error)}") from error
    return _checked(ModelFolder(spec.model, Path(path), Path(path).name))


def _from_folder(path: Path, name: str, known: ModelFolder | None) -> ModelFolder:
    """Take a folder for a model, its revision being a hash of all that matters in it."""
    import xxhash

    _checked(ModelFolder(name, path, ""))
    files = small_files(path) + weight_files(path)
    stamps = _stamps(files)
    if known is not None and known.stamps == stamps:
        return ModelFolder(name, path, known.revision, stamps)
    digest = xxhash.xxh3_128()
    for file in files:
        try:
            digest.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                while block := opened.read(_READ):
                    digest.update(block)
        except OSError as error:
            raise ModelNotLoaded(f"{file} of --model {path} can't be read: {error.strerror}") from error
    return ModelFolder(name, path, f"xxh3-{digest.hexdigest()}", stamps)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 - a Path would raise an error for a name that is too long


def _stamps(files: Iterable[Path]) -> str:
    """Return name, size and times of files. A change that keeps all of them has to set the system's clock back."""
    found = [(file.name, file.stat()) for file in files]
    return " ".join(f"{name}:{facts.st_size}:{facts.st_mtime_ns}:{facts.st_ctime_ns}" for name, facts in found)


def _checked(folder: ModelFolder) -> ModelFolder:
    """Raise ModelNotLoaded where a file is missing without which nothing loads."""
    path = folder.path
    missing = [] if (path / "config.json").is_file() else ["config.json"]
    missing += [file.name for file in weight_files(path) or [path / WEIGHTS[0]] if not file.is_file()]
    missing += [] if any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")) else ["tokenizer.json"]
    if missing:
        half = "; run-transcription convert has not finished it" if (path / "model").is_dir() else ""
        raise ModelNotLoaded(
            f"{path} is not a Whisper model in safetensors form: it has no {', no '.join(missing)}{half}"
        )
    return folder


def _cached(spec: ModelSpec, cache: Path | None) -> ModelFolder | None:
    """Look into a cache of Hugging Face's layout (None: the user's); a half-finished download doesn't count.

    By the documented layout alone: the library's own look takes a second to import, and readers wait for the answer.
    """
    from huggingface_hub import constants

    root = Path(cache or constants.HF_HUB_CACHE) / f"models--{spec.model.replace('/', '--')}"
    revision = spec.revision or "main"
    reference = root / "refs" / revision
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    path = root / "snapshots" / commit
    try:
        return _checked(ModelFolder(spec.model, path, commit))
    except ModelNotLoaded:
        return None


def _reachable() -> bool:
    """Tell within REACH_SECONDS whether Hugging Face answers; in a thread, as looking a name up knows no time limit."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(f"{constants.ENDPOINT}/robots.txt", timeout=REACH_SECONDS).close()  # noqa: S310
        except urllib.error.HTTPError:
            answered.set()  # it said no, but it is there
        except (OSError, http.client.HTTPException):
            return
        answered.set()

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_SECONDS)
    return answered.is_set()


def _network_error() -> type[Exception]:
    """Return the base of the errors of the HTTP library that huggingface_hub uses, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
