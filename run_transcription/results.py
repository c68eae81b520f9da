"""What workers have written about a recording: the json of a result, or that of a failure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from run_transcription import names, storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from run_transcription.records import Job

RESULT = re.compile(r"[0-9a-f]{16}/transcript\.json")  # a listing of results/a/ has those of results/a/b/ too
FAILURE = re.compile(r"[0-9a-f]{16}\.json")


def documents(output: str, key: str) -> Iterator[str]:
    """Yield the addresses of the documents about a key: a result's is written last, so all of it is there."""
    for folder, name in ((names.results_of(output, key), RESULT), (names.failed_of(output, key), FAILURE)):
        yield from (found for found in storage.listing(folder) if name.fullmatch(found.removeprefix(folder)))


def is_done(job: Job) -> bool:
    """Tell whether a job has its result or its failure already."""
    return storage.exists(f"{job.results}.json") or (job.failed is not None and storage.exists(job.failed))
