"""Bake the machine image: packer makes it and proves it, this drives packer and says what came of it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from run_transcription import aws, bake_parts, display, images, options, packer_process, recipe
from run_transcription.errors import TranscriptionError
from run_transcription.packer_process import Course, Packer, WrongVariable
from run_transcription.recipe import BUILDERS, Recipe, Variables

LOGS = bake_parts.CHECKOUT / "build" / "bake"
FOLDERS = ("parts", "output")  # what is brought to the builder, and what comes back
SOME_REGION, SOME_IMAGE = "us-east-1", "ami-00000000000000000"  # stand for what a dry run can't know
NOT_PINNED = (
    f"none is pinned: the newest that {images.BASE_PARAMETER} names when it is baked; "
    "`bake --pin-base`, which needs credentials, writes it down for all bakes after it"
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a bake made, how long each step took, and from what."""

    ami: str
    name: str
    region: str
    seconds: dict[str, float]  # by step
    total_seconds: float
    state: dict[str, object]  # path, size in bytes, sha256
    model: dict[str, object]  # id, revision, source, licence
    base_image: str
    base_image_name: str
    reused_image: str | None  # whose packages were kept
    commit: str
    packer: str
    log: str


@options.command("bake")
@click.option("--model", show_default="the release's", help="Hugging Face id, or `demo`.")
@click.option("--revision", show_default="the release's", help="Commit of the model: 40 hex digits.")
@click.option("--dtype", type=click.Choice(("float16", "bfloat16", "float32")), default="float16", help="Of the state.")
@click.option("--builder", type=click.Choice(tuple(BUILDERS)), default="cpu", help="What to bake on.")
@click.option("--instance-type", multiple=True, show_default="the builder's", help="Tried in turn; several times.")
@click.option("--spot/--on-demand", default=True, help="How the builder is paid for.")
@click.option("--region", show_default="that of your AWS configuration", help="Where the image is made.")
@click.option("--zone", multiple=True, show_default="all of the region", help="Tried in turn; several times.")
@click.option(
    "--subnet", multiple=True, show_default="the zone's default", help="Of the builder. Tried in turn; several times."
)
@click.option("--name", show_default="version, commit and time", help="Of the image.")
@click.option("--reuse/--no-reuse", default=True, help="Start from an image of ours that has the same packages.")
@click.option("--minutes", type=click.FloatRange(min=0.01), default=60.0, help="Then the build is interrupted.")
@click.option("--var", multiple=True, metavar="NAME=VALUE", help="Of variables.pkr.hcl.")
@click.option(
    "--templates",
    type=click.Path(path_type=Path),
    default=bake_parts.CHECKOUT / "packer",
    show_default="packer/ of the checkout",
    help="Folder with the templates.",
)
@click.option("--pin-base", is_flag=True, help="Write the newest base image into the release's variables; no bake.")
@click.option("--dry-run", is_flag=True, help="Validate everything and say what would be done; needs no credentials.")
def bake(*, pin_base: bool, dry_run: bool, **given: Any) -> None:
    """Make the machine image that workers start from, and prove it.

    The image is made only after it has loaded the model by every strategy, transcribed a recording, and been searched
    for secrets. Prints JSON: the image's id, the seconds of each step, size and hash of the state. A token for a gated
    model is taken from HF_TOKEN, the packer program from PACKER, else from PATH.

    \b
    Examples:
      run-transcription bake --dry-run
      run-transcription bake --region eu-west-1
      run-transcription bake --model demo --on-demand --instance-type m5.large
    """
    if pin_base and dry_run:
        raise click.UsageError("--pin-base writes a file and --dry-run changes nothing: choose one.")
    wanted = Recipe(**given)
    bake_parts.require_checkout(wanted.templates)
    if pin_base:
        found = images.base(aws.require_region(wanted.region), "", "")
        with aws.plainly(f"write {wanted.templates / bake_parts.RELEASE}"):
            bake_parts.pin_base(wanted.templates, found.id, found.name)
        click.echo(f"{found.id}  {found.name}")
        display.say(f"written into {wanted.templates / bake_parts.RELEASE}: commit it")
        return
    recipe.check(wanted, aws.find_region(wanted.region))
    packer = packer_process.find()
    if not packer.modern:
        display.say(
            f"packer {packer.name} can't ask for IMDSv2 on the builder: the compatible source is used, and IMDSv2 is "
            "set on the image afterwards"
        )
    with tempfile.TemporaryDirectory(prefix="transcribe-bake-") as scratch:
        if dry_run:
            rehearse(wanted, packer, Path(scratch))
        else:
            click.echo(json.dumps(asdict(make(wanted, packer, Path(scratch))), indent=2))


def rehearse(wanted: Recipe, packer: Packer, scratch: Path) -> None:
    """Validate templates, variables, scripts and wheel, and print what a bake would do."""
    pins = bake_parts.pins(wanted.templates)
    region = aws.find_region(wanted.region)
    base_id = pins["base_image_id"] or SOME_IMAGE
    base = images.Image(base_id, pins["base_image_name"], "", "", {}, (), "")
    variables = recipe.variables(wanted, region or SOME_REGION, base) | {"source_image_id": base_id}
    places = [images.Place(zone) for zone in wanted.zone] or [images.Place("", subnet) for subnet in wanted.subnet]
    _prepare(wanted, packer, scratch, variables | next(recipe.placements(wanted, places or [images.Place("")])))
    source = "modern" if packer.modern else "compatible"
    model = f"{variables['model']} at {variables['model_revision'] or 'the revision of the package'}"
    pinned = f"{base.name} ({pins['base_image_id']})" if base.name else NOT_PINNED
    for what, text in (
        ("packer", f"{packer.path}, {packer.name}, {source} source: templates and variables are valid"),
        ("region", region or "none is set yet: --region, or AWS_DEFAULT_REGION"),
        ("base image", pinned),
        ("model", model),
        ("builder", f"{'spot' if wanted.spot else 'on demand'}: {', '.join(wanted.types)}"),
        ("place", ", ".join(wanted.zone or wanted.subnet) or "the default subnet of one zone after the other"),
        ("packages", f"layer {variables['tags'][images.LAYER]}, by the hashes of {' and '.join(bake_parts.LOCKS)}"),
        ("brings", ", ".join(sorted(path.name for path in (scratch / "parts").iterdir()))),
        ("scripts", ", ".join(bake_parts.steps(wanted.templates))),
        ("image", f"{variables['ami_name']}; tags of it and its snapshots: {', '.join(variables['tags'])}"),
    ):
        click.echo(f"{what:<11} {text}")
    click.echo("nothing was done: this was a dry run")


def make(wanted: Recipe, packer: Packer, scratch: Path) -> Report:
    """Bake on the first type and zone that has an instance to give. Raises TranscriptionError."""
    began = time.monotonic()
    images.require_credentials()
    region, pins = aws.require_region(wanted.region), bake_parts.pins(wanted.templates)
    base = images.base(region, pins["base_image_id"], pins["base_image_name"])
    variables = recipe.variables(wanted, region, base)
    reused = images.reusable(region, variables["tags"][images.LAYER]) if wanted.reuse else None
    variables["source_image_id"] = (reused or base).id
    places = images.places(region, wanted.zone, wanted.subnet)
    attempts = [variables | each for each in recipe.placements(wanted, places)]
    _prepare(wanted, packer, scratch, attempts[0])
    log = LOGS / f"{variables['ami_name'].replace('/', '_')}.log"
    course = _attempt(packer, scratch, attempts, log, wanted.minutes)
    image, bill = _artifact(scratch / "output"), json.loads((scratch / "output" / "bill.json").read_text())
    images.complete(region, image, _tags_of(bill), imds=not packer.modern)
    return Report(
        ami=image,
        name=variables["ami_name"],
        region=region,
        seconds={step: round(seconds, 2) for step, seconds in course.seconds.items()},
        total_seconds=round(time.monotonic() - began, 2),
        state=bill["state"],
        model=bill["model"],
        base_image=base.id,
        base_image_name=base.name,
        reused_image=reused.id if reused else None,
        commit=variables["tags"]["transcribe:commit"],
        packer=packer.name,
        log=str(log),
    )


def _attempt(packer: Packer, scratch: Path, attempts: list[Variables], log: Path, minutes: float) -> Course:
    """Run packer with one type and zone after the other, for as long as there is no instance to be had."""
    with aws.plainly(f"write into {log.parent}"):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    began, course = time.monotonic(), None
    for variables in attempts:
        where = f"{' or '.join(variables['instance_types'])} in {variables['zone']}"
        display.say(f"baking {variables['ami_name']} on {where}; the log is {log}")
        watch = packer_process.Watch(minutes * 60 - (time.monotonic() - began), _say_step)
        course = packer_process.build(packer, _arguments(scratch, variables), _environment(), log, watch)
        if course.overtime:
            raise TranscriptionError(f"the bake was interrupted in {course.step!r} after {minutes:g} minutes: {log}")
        if course.status == 0:
            return course
        if not course.lacks_capacity:
            raise TranscriptionError(f"{course.failed} fails: {course.reason()}; the log is {log}")
        display.say(f"there is no {where} to be had: {course.reason()}")
    raise TranscriptionError(f"no type and zone has an instance to give: {course.reason() if course else 'no zone'}")


def _prepare(wanted: Recipe, packer: Packer, scratch: Path, variables: Variables) -> None:
    """Put the folders together that packer works with, and let it look at them with one attempt's variables."""
    for name in FOLDERS:
        (scratch / name).mkdir()
    bake_parts.write_parts(wanted.templates, scratch / "parts")
    bake_parts.write_templates(wanted.templates, scratch / "templates", modern=packer.modern)
    try:
        packer_process.validate(packer, _arguments(scratch, variables), _environment())
    except WrongVariable as error:
        raise TranscriptionError(f"{recipe.way_of(error.name)}: {error}") from error
    display.say("building the worker's wheel …")
    bake_parts.make_wheel(scratch / "parts")


def _arguments(scratch: Path, variables: Variables) -> list[str]:
    """Write variables where packer reads them, so that none stands on a command line; return its arguments."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_EC2") or os.environ.get("AWS_ENDPOINT_URL")
    folders = {name: str(scratch / name) for name in FOLDERS}
    path = scratch / "variables.pkrvars.json"
    recipe.write(path, variables | folders | ({"ec2_endpoint": endpoint} if endpoint else {}))
    return [f"-var-file={path}", str(scratch / "templates")]


def _environment() -> dict[str, str]:
    """Return packer's environment: the token as its variable, so that it stands on no command line."""
    ours = {"CHECKPOINT_DISABLE": "1", "PKR_VAR_hf_token": os.environ.get("HF_TOKEN", "").strip()}
    return {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | ours


def _artifact(output: Path) -> str:
    """Return the id of the image that the last run made; the manifest keeps earlier runs too."""
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    (made,) = [each for each in manifest["builds"] if each["packer_run_uuid"] == manifest["last_run_uuid"]]
    return str(made["artifact_id"]).rpartition(":")[2]


def _tags_of(bill: dict[str, Any]) -> dict[str, str]:
    """Return what is known of an image only when it is there."""
    packages = {f"transcribe:{name}": bill["packages"][name] for name in ("torch", "transformers")}
    model, state = bill["model"], bill["state"]
    return {
        **packages,
        "transcribe:python": bill["python"],
        "transcribe:revision": model["revision"],
        "transcribe:state-sha256": state["sha256"],
    }


def _say_step(step: str, seconds: float) -> None:
    display.say(f"{int(seconds // 60):>3}:{seconds % 60:04.1f}  {step}")


if __name__ == "__main__":
    bake()
