"""What becomes of machine images after the bake: tried, published, rolled back, listed and removed."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import click

from run_transcription import display, fleet_images, images, options, smoke
from run_transcription.errors import TranscriptionError

PARAMETER = "/transcribe/ami"  # below it: candidate and latest, which launch templates name

region_option = click.option("--region", show_default="that of your AWS configuration", help="Where the images are.")
parameter_option = click.option(
    "--parameter", default=PARAMETER, help="Prefix of the parameters `candidate` and `latest`."
)


@click.group("ami", context_settings=options.COMMAND_SETTINGS)
def ami() -> None:
    """Publish, list and remove machine images."""


@ami.command("publish", cls=options.Command)
@click.argument("image", metavar="AMI", required=False)
@click.option("--rollback", is_flag=True, help="Name again what `latest` named before; no AMI is given.")
@click.option("--instance-type", default="g5.xlarge", help="For the smoke test.")
@click.option("--minutes", type=click.FloatRange(min=0.01), default=15.0, help="That the smoke test may take.")
@parameter_option
@region_option
def publish(  # noqa: PLR0913 - one parameter for each option
    image: str | None, *, rollback: bool, instance_type: str, minutes: float, parameter: str, region: str | None
) -> None:
    """Let new instances start from an image.

    It becomes `candidate`; an instance of it loads the model as a worker would; then it becomes `latest`, which launch
    templates read at each launch (resolve:ssm:/transcribe/ami/latest). The parameter's history is the way back.

    \b
    Examples:
      run-transcription ami publish ami-0123456789abcdef0
      run-transcription ami publish --rollback
    """
    region = images.require_region(region)
    if rollback == (image is not None):
        raise click.UsageError("Give either an AMI or --rollback.")
    if image is None:
        click.echo(f"{parameter}/latest is {fleet_images.roll_back(region, f'{parameter}/latest')} again")
        return
    found = images.one(region, image)
    if found.state != "available" or images.STATE not in found.tags:
        raise TranscriptionError(f"{image} is {found.state} and not an image that `bake` has finished: bake it anew")
    fleet_images.name(region, f"{parameter}/candidate", image)
    display.say(f"{parameter}/candidate is {image}; its smoke test runs on a {instance_type} …")
    smoke.test(region, image, instance_type, minutes * 60)
    fleet_images.name(region, f"{parameter}/latest", image)
    click.echo(f"{parameter}/latest is {image}")


@ami.command("list", cls=options.Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@parameter_option
@region_option
def list_images(parameter: str, region: str | None, *, as_json: bool) -> None:
    """List the images that bakes have made, the newest first, and who uses them."""
    region = images.require_region(region)
    used = fleet_images.users(region, parameter)
    found = images.ours(region)
    if as_json:
        click.echo(json.dumps([asdict(image) | {"used_by": used.get(image.id, [])} for image in found], indent=2))
        return
    for image in found:
        model = f"{image.tags.get('transcribe:model', '?')} at {image.tags.get('transcribe:revision', '?')[:12]}"
        click.echo(f"{image.id}  {image.created[:16]}  {image.name}  {model}  {', '.join(used.get(image.id, ['-']))}")


@ami.command("gc", cls=options.Command)
@click.option("--keep", type=click.IntRange(min=0), default=3, help="So many of the newest stay in any case.")
@click.option("--hours", type=click.FloatRange(min=0), default=6.0, help="A builder that is older was left behind.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@parameter_option
@region_option
def gc(*, keep: int, hours: float, dry_run: bool, parameter: str, region: str | None) -> None:
    """Remove old images with their snapshots, and builders that were left behind.

    An image that an instance, a launch template or a parameter uses, or that a parameter named before, stays.
    """
    region = images.require_region(region)
    used = fleet_images.users(region, parameter)
    old = [image for image in images.ours(region)[keep:] if image.id not in used]
    left = fleet_images.leaked_builders(region, datetime.now(UTC).timestamp() - hours * 3600)
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
