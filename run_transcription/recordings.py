"""What was named on the command line → the recordings meant by it, and a name for the result of each."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

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
    (`a/b.mp3`, `a/b.wav`), or get a few digits of the address's hash. Case does not tell names apart, as some file
    systems don't either. No name leads out of the folder that it is put into.
    """
    below = _below_common_folder(recordings)
    choices = [_choices(path, address) for path, address in zip(below, recordings, strict=True)]
    level = [0] * len(choices)
    while True:
        chosen = [options[at] for options, at in zip(choices, level, strict=True)]
        meeting: defaultdict[str, list[int]] = defaultdict(list)
        for i, name in enumerate(chosen):
            meeting[name.casefold().removesuffix(".aws")].append(i)  # b.aws.json is a file of b, and the json of b.aws
        shortest = [i for group in meeting.values() if len(group) > 1 for i in _lowest(group, level)]
        if not shortest:
            return chosen
        for i in shortest:
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
    if not os.path.isdir(folder):  # noqa: PTH112 - a Path would raise an error for a name that is too long
        return None
    return _walk(folder)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files)  # noqa: PTH118 - a Path would drop a leading ./


def _objects(address: str) -> Iterable[str] | None:
    """Return the objects below an S3 prefix, or None where the address is that of one object, or of nothing.

    What can't be looked at is taken for an object, so that it fails by its name and the others don't.
    """
    try:
        if not address.endswith("/") and storage.split(address)[1] and storage.exists(address):
            return None
        return list(storage.listing(address.rstrip("/") + "/")) or None
    except TranscriptionError:
        return None


def _same(address: str) -> str:
    """Return what two ways to write one file have in common."""
    return address if storage.is_s3(address) else os.path.realpath(address)


def _below_common_folder(recordings: Sequence[str]) -> list[PurePosixPath]:
    paths = [PurePosixPath(_same(address).replace(storage.SCHEME, "/")) for address in recordings]
    common = os.path.commonpath([path.parent for path in paths]) if paths else ""
    below = [path.relative_to(common) for path in paths]
    return [PurePosixPath(*("__" if part == ".." else part for part in path.parts)) for path in below]


def _lowest(group: Sequence[int], level: Sequence[int]) -> list[int]:
    """Return those of a group that have the shortest kind of name: they give way first."""
    lowest = min(level[i] for i in group)
    return [i for i in group if level[i] == lowest]


def _choices(path: PurePosixPath, address: str) -> tuple[str, str, str, str]:
    """Return the names that a result may have, from the shortest to one that nothing else has."""
    digits = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return path.stem, str(path.with_name(path.stem)), str(path), f"{path}-{digits}"
