"""What a try that came to no end leaves for the next one: its finished rows, as JSON under work/<identity>/."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from run_transcription import storage
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.records import Advance, Chunk, Row

NOTHING = Advance(0.0, ())

log = logging.getLogger(__name__)


class Progress:
    """The finished rows of one job: added by the model's thread, saved by whoever ends the job too early."""

    def __init__(self, address: str, before: Advance = NOTHING) -> None:
        """Go on from what an earlier try has left at an address."""
        self.address = address
        self.before = before
        self._seconds, self._rows = before.seconds, dict(before.rows)  # those that are not written yet
        self._written: dict[Chunk, str] = {}  # the others: a row is written once, however often all are stored
        self._saved = len(self._rows)
        self._lock = threading.Lock()

    @property
    def kept(self) -> bool:
        """Whether anything lies at the address."""
        return self._saved > 0

    @property
    def finished(self) -> dict[Chunk, Row]:
        """The rows of the earlier try."""
        return dict(self.before.rows)

    def add(self, advance: Advance) -> None:
        """Take in what a batch added."""
        with self._lock:
            self._seconds = max(self._seconds, advance.seconds)
            self._rows |= {chunk: row for chunk, row in advance.rows if chunk not in self._written}

    def save(self) -> None:
        """Store the rows, if there are new ones; a failure costs time on the next try, so it is only said."""
        with self._lock:
            for chunk, row in self._rows.items():
                self._written[chunk] = json.dumps([dataclasses.asdict(chunk), dataclasses.asdict(row)])
            self._rows, count = {}, len(self._written)
            if count == self._saved:
                return
            try:
                text = f'{{"seconds": {json.dumps(self._seconds)}, "rows": [{", ".join(self._written.values())}]}}'
                storage.store(self.address, text.encode())
            except TranscriptionError as error:
                log.warning("%s", error)
            else:
                self._saved = count


def load(address: str) -> Advance:
    """Return what an earlier try has left at an address; nothing where there is nothing, or nothing of use."""
    try:
        found: Advance = restored(Advance, json.loads(storage.read(address)))
    except Rejected:
        return NOTHING
    except (TranscriptionError, ValueError, TypeError, KeyError) as error:
        log.warning("%s is of no use (%s): the recording is begun anew", address, error)
        return NOTHING
    return found


def forget(address: str) -> None:
    """Remove what a finished job has left; a failure leaves it to the bucket's lifecycle."""
    try:
        storage.remove(address)
    except TranscriptionError as error:
        log.warning("%s", error)


def restored(kind: Any, value: Any) -> Any:
    """Return what `dataclasses.asdict` and JSON have made of a record, as the record that its type hints describe.

    A field that JSON lacks has its default, and one that the record lacks is passed over: another release wrote it.
    Raises TypeError for a value of another type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        if not isinstance(value, dict):
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")
        return kind(**{name: restored(hints[name], value[name]) for name in hints.keys() & value.keys()})
    if origin is tuple and isinstance(value, list):
        kinds = (arguments[0],) * len(value) if arguments[-1] is ... else arguments
        return tuple(restored(each, item) for each, item in zip(kinds, value, strict=True))
    if origin in (types.UnionType, Union):
        return _first_that_fits(arguments, value)
    if origin is Literal and value in arguments:
        return value
    if kind is float and type(value) in (int, float):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise TypeError(f"{value!r:.40} is no {kind}")


def _first_that_fits(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return restored(kind, value)
        except (TypeError, ValueError):
            continue
    raise TypeError(f"{value!r:.40} is none of {kinds}")
