"""Whether this machine can do the work: the golden clip, compared by words, and room on its disk."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from run_transcription.engines import golden
from run_transcription.errors import OutOfOrder

if TYPE_CHECKING:
    from run_transcription.records import ModelHandle

ROOM = 1 << 20  # bytes that must fit on the disk

log = logging.getLogger(__name__)


def run(handle: ModelHandle, folder: Path, wanted: golden.Golden | None) -> golden.Golden:
    """Return what the model hears in the golden clip; `wanted` is what it should, where that is known.

    Raises OutOfOrder where it hears something else or can't hear at all, or where nothing can be written.
    """
    try:
        heard = golden.hear(handle.engine)
    except Exception as error:
        raise OutOfOrder(f"the self-test failed: {' '.join(str(error).split()) or type(error).__name__}") from error
    if wanted is not None and heard.words != wanted.words:
        raise OutOfOrder(f"the self-test failed: {golden.difference(heard, wanted) or 'other words were heard'}")
    part = folder / secrets.token_hex(8)
    try:
        part.write_bytes(secrets.token_bytes(ROOM))
    except OSError as error:
        raise OutOfOrder(f"the self-test failed: cannot write into {folder}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return heard
