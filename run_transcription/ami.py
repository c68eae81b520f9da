"""What becomes of machine images after the bake: tried, published, rolled back, listed and removed."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from run_transcription import aws, display, fleet_images, images, options, smoke
from run_transcription.errors import TranscriptionError

PARAMETER = "/transcribe/ami"  # below it: candidate and latest, which launch templates name
TYPES = ("g5.xlarge", "g6.xlarge", "g4dn.xlarge")  # what a worker may run on, any of them

region_option = click.option("--region", show_default="that of your AWS configuration", help="Where the images are.")
parameter_option = click.option(
    "--parameter", default=PARAMETER, help="Prefix of the parameters `candidate` and `latest`."
)


@click.group("ami", context_settings=options.COMMAND_SETTINGS)
def ami() -> None:
    """Publish, list and remove machine images."""


@ami.command("publish", cls=options.Command)
@click.argument("image", metavar="[AMI]", required=False)
@click.option("--rollback", is_flag=True, help="Name again what `latest` named before; no AMI is given.")
@click.option(
    "--instance-type",
    multiple=True,
    default=TYPES,
    show_default=" ".join(TYPES),
    help="Of the smoke test; tried in turn.",
)
@click.option("--zone", multiple=True, show_default="all of the region", help="Of the smoke test; tried in turn.")
@click.option("--subnet", multiple=True, show_default="the zone's default", help="Of the smoke test; tried in turn.")
@click.option("--minutes", type=click.FloatRange(min=0.01), default=15.0, help="That the smoke test may take.")
@parameter_option
@region_option
def publish(  # noqa: PLR0913 - one parameter for each option
    image: str | None,
    *,
    rollback: bool,
    instance_type: tuple[str, ...],
    zone: tuple[str, ...],
    subnet: tuple[str, ...],
    minutes: float,
    parameter: str,
    region: str | None,
) -> None:
    """Let new instances start from an image.

    It becomes `candidate`; an instance of it loads the model as a worker would; then it becomes `latest`, which launch
    templates read at each launch (resolve:ssm:/transcribe/ami/latest). The parameter's history is the way back: each
    --rollback goes one image further.

    \b
    Examples:
      run-transcription ami publish ami-0123456789abcdef0
      run-transcription ami publish ami-0123456789abcdef0 --instance-type g6.xlarge --subnet subnet-0123456789abcdef0
      run-transcription ami publish --rollback
    """
    region = aws.require_region(region)
    if rollback == (image is not None):
        raise click.UsageError("Give either an AMI or --rollback.")
    if image is None:
        click.echo(f"{parameter}/latest is {fleet_images.roll_back(region, f'{parameter}/latest')} again")
        return
    found = images.one(region, image)
    if found.state != "available" or not found.finished:
        raise TranscriptionError(f"{image} is {found.state} and not an image that `bake` has finished: bake it anew")
    places = images.places(region, zone, subnet)
    fleet_images.name(region, f"{parameter}/candidate", image)
    display.say(f"{parameter}/candidate is {image}")
    smoke.test(region, image, instance_type, places, minutes * 60)
    fleet_images.name(region, f"{parameter}/latest", image)
    click.echo(f"{parameter}/latest is {image}")


@ami.command("list", cls=options.Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@parameter_option
@region_option
def list_images(parameter: str, region: str | None, *, as_json: bool) -> None:
    """List the images that bakes have made, the newest first, and who uses them."""
    region = aws.require_region(region)
    used = fleet_images.users(region, parameter)
    found = images.ours(region)
    if as_json:
        rows = [asdict(image) | {"finished": image.finished, "used_by": used.get(image.id, [])} for image in found]
        click.echo(json.dumps(rows, indent=2))
        return
    for image in found:
        model = f"{image.tags.get('transcribe:model', '?')} at {image.tags.get('transcribe:revision', '?')[:12]}"
        users = ", ".join(used.get(image.id, ["-"]))
        click.echo(f"{image.id}  {image.created[:16]}  {_standing(image):<12}  {image.name}  {model}  {users}")
    if not found:
        click.echo(f"there is no image of a bake in {region}")


@ami.command("gc", cls=options.Command)
@click.option("--keep", type=click.IntRange(min=0), default=3, help="So many of the newest finished ones stay.")
@click.option(
    "--hours",
    type=click.FloatRange(min=0),
    default=6.0,
    help="Builders and unfinished images that are older were left behind.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@parameter_option
@region_option
def gc(*, keep: int, hours: float, dry_run: bool, parameter: str, region: str | None) -> None:
    """Remove old images with their snapshots, those that no bake has finished, and builders that were left behind.

    An image that an instance, a launch template or a parameter uses, or that --rollback would lead to, stays.
    """
    region = aws.require_region(region)
    used = fleet_images.users(region, parameter)
    since = datetime.now(UTC).timestamp() - hours * 3600
    ours = images.ours(region)
    spare = [image for image in ours if image.finished][keep:]
    spare += [each for each in ours if not each.finished and datetime.fromisoformat(each.created).timestamp() < since]
    old = [image for image in spare if image.id not in used]
    left = fleet_images.leaked_builders(region, since)
    for image in old:
        click.echo(
            f"{'would remove' if dry_run else 'removes'} {image.id} {image.name} and {len(image.snapshots)} snapshots"
        )
        if not dry_run:
            fleet_images.remove(region, image)
    for instance in left:
        click.echo(f"{'would end' if dry_run else 'ends'} the builder {instance}, left behind")
    if left and not dry_run:
        fleet_images.end(region, left)
    if not old and not left:
        click.echo("nothing to remove")


def _standing(image: images.Image) -> str:
    """Return what a person must know of an image before publishing it."""
    if image.state != "available":
        return image.state
    return "finished" if image.finished else "not finished"
