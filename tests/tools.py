"""Tests that need a program of the system say so here: without it they skip, and under CI=true they fail."""

from __future__ import annotations

import os
import shutil

import pytest


def require_tool(name: str) -> str:
    """Return the path of a program; skip the test where it is lacking, or fail it under CI."""
    found = shutil.which(name)
    if found is None:
        message = f"{name} is lacking: run `make tools`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
