"""What a bake is asked for, and the variables of packer that follow from it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from run_transcription import __version__, bake_parts, images
from run_transcription.errors import TranscriptionError

# the types that are tried in turn: a GPU is wanted by no step, but shows the state on the device that will use it
BUILDERS = {
    "cpu": ("m7i.xlarge", "m6i.xlarge", "m5.xlarge", "m6a.xlarge"),
    "gpu": ("g6.xlarge", "g5.xlarge", "g4dn.xlarge"),
}
# how variables are given that have a way of their own; --var is for the others
OWN_WAYS = {
    "region": "--region",
    "ami_name": "--name",
    "model": "--model",
    "model_revision": "--revision",
    "dtype": "--dtype",
    "instance_types": "--instance-type",
    "spot": "--spot or --on-demand",
    "zone": "--zone",
    "subnet_id": "--subnet",
    "hf_token": "HF_TOKEN",
    "ec2_endpoint": "AWS_ENDPOINT_URL_EC2",
    "base_image_id": bake_parts.RELEASE,
    "base_image_name": bake_parts.RELEASE,
}
OURS = ("parts", "output", "tags", "source_image_id")  # which only a bake itself can know
COMMIT = re.compile(r"[0-9a-f]{40}")

Variables = dict[str, Any]  # by name, as packer's are: of any type that JSON has


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was asked for on the command line."""

    model: str | None
    revision: str | None
    dtype: str
    builder: str
    instance_type: tuple[str, ...]
    spot: bool
    region: str | None
    zone: tuple[str, ...]
    subnet: tuple[str, ...]
    name: str | None
    reuse: bool
    minutes: float
    var: tuple[str, ...]
    templates: Path

    @property
    def types(self) -> tuple[str, ...]:
        """The instance types to try."""
        return self.instance_type or BUILDERS[self.builder]


def check(recipe: Recipe, region: str | None) -> None:
    """Raise TranscriptionError for what can't be meant, before anybody is asked; the region may not be known yet."""
    images.check_places(region, recipe.zone, recipe.subnet)
    _model(recipe, bake_parts.pins(recipe.templates))
    _given(recipe)


def way_of(variable: str) -> str:
    """Return how a variable of packer is given, as a person types it."""
    return OWN_WAYS.get(variable, f"--var {variable}")


def variables(recipe: Recipe, region: str, base: images.Image) -> Variables:
    """Return packer's variables for a recipe; those of one attempt come from `placements`."""
    pins = bake_parts.pins(recipe.templates)
    model, revision = _model(recipe, pins)
    given = _given(recipe)
    commit = bake_parts.commit()
    torch_source, state_gigabytes = given.get("torch_source", "lock"), given.get("state_volume_gigabytes", "0")
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    tags = {
        "transcribe:version": __version__,
        "transcribe:commit": commit,
        "transcribe:model": model,
        "transcribe:revision": revision or "the package's",
        images.BASE_ID: base.id,
        images.BASE_NAME: base.name,
        images.LAYER: bake_parts.layer(recipe.templates, base.id, torch_source, int(state_gigabytes)),
    }
    return {
        "region": region,
        "ami_name": recipe.name or f"transcribe-{__version__}-{commit[:12]}-{moment}",
        "base_image_id": base.id,
        "base_image_name": base.name,
        "minimum_driver": int(pins["minimum_driver"]),
        "model": model,
        "model_revision": revision,
        "dtype": recipe.dtype,
        "spot": recipe.spot,
        "tags": tags,
        **given,
    }


def placements(recipe: Recipe, places: Iterable[images.Place]) -> Iterator[Variables]:
    """Yield types and place of each attempt: a spot request names all types at once, an instance has one."""
    for place in places:
        for types in [recipe.types] if recipe.spot else [(each,) for each in recipe.types]:
            yield {"instance_types": list(types), "zone": place.zone, "subnet_id": place.subnet}


def write(path: Path, values: Variables) -> None:
    """Write variables where packer reads them: nothing of them stands on a command line."""
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")


def _model(recipe: Recipe, pins: dict[str, str]) -> tuple[str, str]:
    """Return id and revision of the model; a branch is refused, since it names something else tomorrow."""
    if recipe.model == "demo":
        if recipe.revision:
            raise TranscriptionError(f"--revision {recipe.revision}: the demo model has none, it comes in the package")
        return "demo", ""
    model = recipe.model or pins["model"]
    revision = recipe.revision or (pins["model_revision"] if model == pins["model"] else "")
    if not COMMIT.fullmatch(revision):
        problem = f"which {revision} is not" if revision else "and none is given"
        raise TranscriptionError(f"--revision: {model} wants a commit of 40 hex digits, {problem}")
    return model, revision


def _given(recipe: Recipe) -> dict[str, str]:
    """Return what --var names; packer itself would pass over a variable that there is not."""
    free = bake_parts.variable_names(recipe.templates) - OWN_WAYS.keys() - set(OURS)
    found = {}
    for pair in recipe.var:
        name, equals, value = pair.partition("=")
        if name in OWN_WAYS:
            raise TranscriptionError(f"--var {name}: use {OWN_WAYS[name]} instead")
        if name not in free:
            raise TranscriptionError(f"--var {name}: it is none of {', '.join(sorted(free))}")
        if not equals:
            raise TranscriptionError(f"--var {name}: give it a value, as {name}=VALUE")
        found[name] = value
    if not found.get("state_volume_gigabytes", "0").isdigit():
        raise TranscriptionError("--var state_volume_gigabytes: give a whole number")
    return found
