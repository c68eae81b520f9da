"""Recordings that lie there already: found page by page, and parted into those with a result and those without.

A page holds at most PAGE recordings, so memory does not grow with their number.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from run_transcription import names, recordings, results, storage
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

PAGE = 1000
ADDRESS = re.compile(r"s3://[^/]+/.+")
THREADS = 16  # that ask S3 for single recordings; aws.py's clients have 20 connections
DONE = (
    ("results/", re.compile(r"(.+)/[0-9a-f]{16}/transcript\.json", re.DOTALL)),
    ("failed/", re.compile(r"(.+)/[0-9a-f]{16}\.json", re.DOTALL)),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some recordings of one bucket or several, in the order of the listing or of the manifest."""

    addresses: tuple[str, ...]
    positions: tuple[str, ...]  # for each: what the next run goes on from, once it is done
    listed: bool  # in the order of one prefix of a bucket


def listed(prefix: str, after: str) -> Iterator[Page]:
    """Yield the recordings below an s3:// prefix, after the key of a page's position; raises TranscriptionError."""
    addresses = (each for each in storage.listing_after(prefix, after) if recordings.could_be_audio(each))
    while chosen := tuple(islice(addresses, PAGE)):
        yield Page(chosen, tuple(storage.split(each)[1] for each in chosen), listed=True)


def in_manifest(path: Path, after: str) -> Iterator[Page]:
    """Yield what a file names, an s3:// address on each line, after the line of a page's position.

    Raises TranscriptionError, naming the line, for one that is no address.
    """
    done = int(after or 0)
    try:
        with path.open(encoding="utf-8") as file:
            lines = ((at, line.rstrip("\r\n")) for at, line in enumerate(file, start=1))
            wanted = ((at, line) for at, line in lines if at > done and line)
            while chosen := tuple(islice(wanted, PAGE)):
                for at, line in chosen:
                    if not ADDRESS.fullmatch(line):
                        raise TranscriptionError(f"{path}, line {at}: {line[:200]!r} is no s3://bucket/key")
                yield Page(tuple(line for _, line in chosen), tuple(str(at) for at, _ in chosen), listed=False)
    except (OSError, UnicodeDecodeError) as error:
        raise TranscriptionError(f"cannot read the manifest {path}: {error}") from error


def count(path: Path) -> int:
    """Return how many recordings a manifest names; raises TranscriptionError."""
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.rstrip(b"\r\n"))
    except OSError as error:
        raise TranscriptionError(f"cannot read the manifest {path}: {error}") from error


def gone(addresses: Sequence[str]) -> list[str]:
    """Return those recordings that are not there any more; raises TranscriptionError."""
    return _those_that(addresses, lambda address: not storage.exists(address))


def without_result(page: Page, output: str, buckets: Collection[str]) -> list[str]:
    """Return the recordings of a page that have neither a result nor a failure yet; raises TranscriptionError.

    Results of all `buckets` lie below the output, each by its key alone: where two buckets may have the same key, the
    results themselves tell which one they are of.
    """
    ask = partial(_is_open, output, buckets)
    if not page.listed:
        return _those_that(page.addresses, ask)
    keys = {storage.split(address)[1]: address for address in page.addresses}
    done = set().union(*(_done_keys(output, folder, form, sorted(keys)) for folder, form in DONE))
    last = max(keys)
    # the listing of results ends at the last key's: those of a key that it begins with may stand behind it, and those
    # of a key that is no path are named by its hash
    unclear = {
        key
        for key, address in keys.items()
        if (key in done and _may_be_anothers(address, output, buckets))
        or (key not in done and (last.startswith(key) or not names.results_of(output, key).endswith(f"/{key}/")))
    }
    left = set(_those_that([keys[key] for key in sorted(unclear)], ask))
    return [address for key, address in keys.items() if (address in left if key in unclear else key not in done)]


def _done_keys(output: str, folder: str, form: re.Pattern[str], keys: list[str]) -> Iterator[str]:
    """Yield those of some keys that have documents in a folder: one listing, from the first key's to the last one's."""
    root = storage.join(output, folder)
    wanted = frozenset(keys)
    behind = keys[-1] + "0"  # 0 is what comes after / in the order of keys
    common = _common_start(keys[0], keys[-1])
    _, beginning = storage.split(root)
    for address in storage.listing_after(root + common, beginning + keys[0]):
        path = address.removeprefix(root)
        if path > behind and not path.startswith(keys[-1]):
            return
        if (found := form.fullmatch(path)) and found[1] in wanted:
            yield found[1]


def _common_start(first: str, last: str) -> str:
    """Return what two texts begin with alike."""
    same = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        same += 1
    return first[:same]


def _may_be_anothers(address: str, output: str, buckets: Collection[str]) -> bool:
    """Tell whether results of a recording's key may be of another bucket; the stack's own has uploads alone."""
    bucket, key = storage.split(address)
    own = storage.split(output)[0]
    return any(other != bucket and (other != own or key.startswith(names.UPLOADS)) for other in buckets)


def _is_open(output: str, buckets: Collection[str], address: str) -> bool:
    """Tell whether a recording has neither a result nor a failure, by asking for it alone."""
    documents = results.documents(output, storage.split(address)[1])
    if _may_be_anothers(address, output, buckets):
        return all(results.recording_of(each) != address for each in documents)
    return next(documents, None) is None


def _those_that(addresses: Sequence[str], ask: Callable[[str], bool]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [address for address, answer in zip(addresses, pool.map(ask, addresses), strict=True) if answer]
