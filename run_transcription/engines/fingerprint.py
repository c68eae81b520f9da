"""What the state of a model was made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What the state of a model was made from: a state fits where every field is the wanted one."""

    format_version: str
    model_id: str
    revision: str
    content_sha256: str  # of the weights' files as they were before the cast to dtype
    config_sha256: str
    dtype: str
