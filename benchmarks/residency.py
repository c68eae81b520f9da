"""Which pages of a file are in memory; and how to get rid of them."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def evict(path: Path) -> bool:
    """Drop a file from the page cache, and tell whether it is gone."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path) == 0


def resident(path: Path) -> int:
    """Return how many pages of a file are in the page cache."""
    size = path.stat().st_size
    seen = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(view))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(size), seen)
        del view
    if failed:
        message = f"mincore does not answer for {path}"
        raise OSError(message)
    return sum(byte & 1 for byte in seen)
