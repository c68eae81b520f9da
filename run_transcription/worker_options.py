"""The options of the worker, which reach it as one record."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from run_transcription import names
from run_transcription.decoding_table import Number
from run_transcription.leases import LONGEST_VISIBILITY_SECONDS, STALL_SECONDS, VISIBILITY_SECONDS
from run_transcription.options import BucketName

if TYPE_CHECKING:
    from run_transcription.options import Function

SAVE_SECONDS = 60.0
STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told beside model, decoding and formats."""

    queue_url: str | None = None
    backfill_url: str | None = None
    folder: Path | None = None
    buckets: tuple[str, ...] = ()
    output: str | None = None
    trigger_prefix: str = names.UPLOADS
    once: bool = False
    idle_seconds: float = 0.0
    image_parameter: str | None = None
    visibility_timeout: float = VISIBILITY_SECONDS
    stall_seconds: float = STALL_SECONDS
    save_seconds: float = SAVE_SECONDS
    stop_seconds: float = STOP_SECONDS
    price_per_hour: float | None = None
    notify_topic: str | None = None


def worker_options(function: Function) -> Function:
    """Add the worker's options; the function gets `settings`, a Settings."""

    @functools.wraps(function)
    def with_settings(*positional: Any, **named: Any) -> Any:
        settings = Settings(**{field.name: named.pop(field.name) for field in dataclasses.fields(Settings)})
        return function(*positional, settings=settings, **named)

    return functools.reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), with_settings)


def _seconds(name: str, default: float, purpose: str, least: float = 0.0, most: float | None = None) -> Function:
    return click.option(name, type=Number(least, most), default=default, help=purpose)


_OPTIONS = (
    click.option("--queue-url", metavar="URL", help="SQS queue that gets the bucket's events, or jobs."),
    click.option("--backfill-url", metavar="URL", help="Second queue, asked while the first one is empty."),
    click.option(
        "--source", "folder", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder to watch instead."
    ),
    click.option(
        "--bucket",
        "buckets",
        type=BucketName(),
        multiple=True,
        help="Bucket that recordings may lie in; may be given several times. A queue needs at least one.",
    ),
    click.option(
        "-o",
        "--output-dir",
        "output",
        metavar="DIR|s3://BUCKET/PREFIX",
        show_default="the recording's bucket, or the folder beside FOLDER",
        help="Where results/, failed/ and work/ go.",
    ),
    click.option(
        "--trigger-prefix",
        default=names.UPLOADS,
        metavar="PREFIX",
        help="Keys that cause events: results must not go there, or each would cause the next.",
    ),
    click.option("--once", is_flag=True, help="End when nothing is left."),
    _seconds(
        "--idle-seconds",
        0.0,
        "Time without work after which the worker ends, and its instance too where its group may shrink; 0: never.",
    ),
    click.option(
        "--image-parameter", metavar="NAME", help="SSM parameter of the newest image: an instance of another one ends."
    ),
    _seconds(
        "--visibility-timeout",
        VISIBILITY_SECONDS,
        "Time that messages stay hidden once their worker has died; renewed at a third of it.",
        least=3.0,
        most=LONGEST_VISIBILITY_SECONDS,
    ),
    _seconds(
        "--stall-seconds",
        STALL_SECONDS,
        "Time without progress after which the job hangs: all is given back, and the worker ends.",
        least=1.0,
    ),
    _seconds(
        "--save-seconds",
        SAVE_SECONDS,
        "Longest time between two savings of a recording's progress; while they take little, each batch is saved.",
    ),
    _seconds("--stop-seconds", STOP_SECONDS, "Time that SIGTERM leaves the job in hand; then it is given back."),
    click.option("--price-per-hour", type=Number(0), help="The instance's price, for what each job costs."),
    click.option("--notify-topic", metavar="ARN", help="SNS topic that hears of each finished or failed recording."),
)
