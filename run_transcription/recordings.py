"""What was named on the command line → the recordings meant by it, and a name for the result of each."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from run_transcription import storage
from run_transcription.errors import TranscriptionError

# In a folder only these are taken; a file that is named itself is always tried, whatever it is called.
SUFFIXES = tuple(
    f".{extension}"
    for extension in (
        *("3gp", "aac", "ac3", "aif", "aiff", "amr", "ape", "au", "avi", "caf", "dts", "flac", "flv", "m4a", "m4b"),
        *("m4v", "mka", "mkv", "mov", "mp2", "mp3", "mp4", "mpeg", "mpg", "mts", "mxf", "oga", "ogg", "ogv", "opus"),
        *("ra", "spx", "ts", "tta", "voc", "w64", "wav", "webm", "wma", "wmv", "wv"),
    )
)

logger = logging.getLogger(__name__)


def find(named: Iterable[str]) -> list[str]:
    """Return the addresses of recordings, each once: files as they are, folders and S3 prefixes with all in them.

    What isn't there stays in the list, so that it fails by its name. Raises TranscriptionError where nothing is left.
    """
    found = [recording for address in named for recording in _expand(address)]
    if not found:
        raise TranscriptionError("there is no recording to transcribe")
    return list({_same(address): address for address in found}.values())


def could_be_audio(name: str) -> bool:
    """Tell by its name whether a file in a folder is taken for a recording."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def names(recordings: Sequence[str]) -> list[str]:
    """Return a name for each recording's result, without extension: `a/b.mp3` is `b`.

    Names that would meet keep their folder (`a/b`, `c/b`), and those that still would keep their own extension
    (`a/b.mp3`, `a/b.wav`). Case does not tell names apart, as some file systems don't either.
    """
    choices = [_choices(path) for path in _below_common_folder(recordings)]
    level = [0] * len(choices)
    while True:
        chosen = [options[at] for options, at in zip(choices, level, strict=True)]
        count = Counter(name.casefold() for name in chosen)
        clashing = [i for i, name in enumerate(chosen) if count[name.casefold()] > 1 and level[i] + 1 < len(choices[i])]
        if not clashing:
            return chosen
        for i in clashing:
            level[i] += 1


def _expand(address: str) -> Iterator[str]:
    inside = _objects(address) if storage.is_s3(address) else _files(address)
    if inside is None:
        yield address
        return
    recordings = sorted(filter(could_be_audio, inside))
    if not recordings:
        logger.warning("%s holds no recording", address)
    yield from recordings


def _files(folder: str) -> Iterable[str] | None:
    """Return the visible files below a folder, or None for anything that is not one."""
    if not Path(folder).is_dir():
        return None
    return _walk(folder)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files)  # noqa: PTH118 - a Path would drop a leading ./


def _objects(address: str) -> Iterable[str] | None:
    """Return the objects below an S3 prefix, or None where the address is that of one object, or of nothing."""
    if not address.endswith("/") and storage.split(address)[1] and storage.exists(address):
        return None
    return list(storage.listing(address.rstrip("/") + "/")) or None


def _same(address: str) -> str:
    """Return what two ways to write one file have in common."""
    return address if storage.is_s3(address) else os.path.realpath(address)


def _below_common_folder(recordings: Sequence[str]) -> list[PurePosixPath]:
    paths = [PurePosixPath(_same(address).replace(storage.SCHEME, "/")) for address in recordings]
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [path.relative_to(common) for path in paths]


def _choices(path: PurePosixPath) -> tuple[str, str, str]:
    """Return the names that a result may have, from the shortest to one that nothing else has."""
    return path.stem, str(path.with_name(path.stem)), str(path)
