"""The shape of a result's json, as JSON Schema (draft 2020-12), read off the records themselves."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from run_transcription.audit import Quality
from run_transcription.errors import REASON_CODES
from run_transcription.records import (
    SCHEMA_VERSION,
    AudioFacts,
    Decoding,
    Failure,
    LoadReport,
    ModelFacts,
    Segment,
    Status,
    StoredFile,
    Task,
    Timing,
    Word,
)

Schema = dict[str, Any]

# What a type does not say; by the name of the field, wherever it stands.
SECONDS: Schema = {"minimum": 0}
SHARE: Schema = {"minimum": 0, "maximum": 1}
LIMITS: dict[str, Schema] = {
    "start": SECONDS,
    "end": SECONDS,
    "duration": SECONDS,
    "gaps": SECONDS,
    "seconds": SECONDS,
    "seek": {"minimum": 0, "description": "start of the segment's chunk, in frames of 10 ms"},
    "size": {"minimum": 0, "description": "bytes"},
    "replaced_samples": {"minimum": 0, "description": "samples that were no numbers or beyond all sound, set to zero"},
    "probability": SHARE,
    "confidence": SHARE | {"description": "geometric mean of the probabilities of its tokens"},
    "coverage": {"description": "share of the speech found that has text; null where no speech was found"},
    "uncovered": {"description": "speech found that has no text"},
    "reasons": {"description": "for a review; the last four: what a window failed by at every temperature"},
    "reduced_batch_size": {
        "minimum": 1,
        "description": "windows decoded at a time, where memory had no room for `batch_size` of them",
    },
    "retried_rows": {"minimum": 0, "description": "windows that were decoded more than once"},
    "no_speech_prob": SHARE,
    "compression_ratio": {"minimum": 0},
    "sha256": {"pattern": "^[0-9a-f]{64}$"},
    "code": {"enum": list(REASON_CODES)},
    "mix": {"pattern": "^(average|split|channel [0-9]+)$"},
    "channel": {"description": "the segment's, counted from 1; null where all channels are mixed"},
    "language_detection_threshold": SHARE,
}


def schema() -> Schema:
    """Return the JSON Schema of a result document; every field is always there, null where there is nothing to say."""
    transcript = _transcript_fields()
    fields: dict[str, Schema] = {
        "schema_version": {"const": SCHEMA_VERSION},
        "status": {"enum": [status for status in get_args(Status) if status in ("COMPLETED", "FAILED")]},
        **transcript,
        "input": _input(),
        "model": _record(ModelFacts),
        "load": _record(LoadReport),
        "timing": _object(
            {
                **_record(Timing, SECONDS)["properties"],
                "rtfx": _nullable({"type": "number", "minimum": 0, "description": "audio seconds / wall seconds"}),
            }
        ),
        "options": _record(Decoding),
        "files": {"type": "object", "additionalProperties": _record(StoredFile), "description": "by format"},
        "error": _nullable(_record(Failure)),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Result of run_transcription: a superset of OpenAI's verbose_json",
        **_object(fields),
        "if": {"properties": {"status": {"const": "COMPLETED"}}},
        "then": {"properties": {"error": {"type": "null"}} | {name: {"not": {"type": "null"}} for name in _ALWAYS}},
        "else": {"properties": {"error": {"type": "object"}} | {name: {"type": "null"} for name in transcript}},
    }


_ALWAYS = ("task", "duration", "text", "segments", "quality")  # the language is null where nothing was said


def _input() -> Schema:
    return _object(
        {
            "recording": {"type": "string", "description": "path or s3://bucket/key"},
            "version_id": _nullable({"type": "string"}),
            "version": _nullable({"type": "string", "description": "version id, or eTag in a bucket without versions"}),
            "sequencer": _nullable({"type": "string", "description": "S3's: the later of two has the greater"}),
            "identity": _nullable({"type": "string"}),
            "options": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": "what was asked for with this recording, by the names of the command line",
            },
            "audio": _nullable(_record(AudioFacts)),
        }
    )


def _transcript_fields() -> dict[str, Schema]:
    segment = _record(Segment)
    properties = {"id": {"type": "integer", "minimum": 0}, **segment["properties"]}
    required = [name for name in properties if name != "words"]
    segment |= {"properties": properties, "required": required}
    segment["properties"]["words"] = {"type": "array", "items": _record(Word), "minItems": 1}
    quality = {
        "language_probability": {"type": "number", **SHARE},
        "avg_logprob": _nullable({"type": "number", "description": "mean over all tokens"}),
        "truncated_chunks": {
            "type": "integer",
            "minimum": 0,
            "description": "chunks whose text broke off at the longest text that the model can write",
        },
        **_record(Quality)["properties"],
    }
    return {
        "task": _nullable({"enum": list(get_args(Task))}),
        "language": _nullable({"type": "string"}),
        "duration": _nullable({"type": "number", **SECONDS}),
        "text": _nullable({"type": "string"}),
        "segments": _nullable({"type": "array", "items": segment}),
        "quality": _nullable(_object(quality)),
    }


def _record(record: type, limits: Schema | None = None) -> Schema:
    """Return the schema of a dataclass: all its fields, and no others."""
    hints = get_type_hints(record)
    names = [field.name for field in dataclasses.fields(record)]
    return _object({name: _of(hints[name]) | LIMITS.get(name, limits or {}) for name in names})


def _object(properties: dict[str, Schema]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _nullable(schema_of_value: Schema) -> Schema:
    return {"anyOf": [schema_of_value, {"type": "null"}]}


def _of(hint: Any) -> Schema:
    """Return the schema of a field's type."""
    simple = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    if hint in simple:
        return {"type": simple[hint]}
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return {"enum": list(arguments)}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if get_origin(hint) in (types.UnionType, Union):
        return {"anyOf": [_of(argument) for argument in arguments]}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record(hint)
    raise TypeError(f"no JSON Schema is known for {hint}")
