"""The commands for messages that nobody could work on."""

from __future__ import annotations

import contextlib
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from run_transcription import aws, display, messages, options, stacks
from run_transcription.errors import TranscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from run_transcription.stacks import Stack

HOLD_SECONDS = 120  # messages are hidden from others while they are looked at
POLL_SECONDS = 1
AT_ONCE = 10
NONE = "there are no dead letters"

all_option = click.option("--all", "every", is_flag=True, allow_from_autoenv=False, help="All that are there now.")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of the dead-letter queue."""

    id: str
    receipt: str
    sent: str
    body: str
    reason: str

    @property
    def about(self) -> str:
        """The recordings that it announces, or that it can't be read."""
        try:
            return " ".join(upload.address for upload in messages.uploads_in(self.body)) or "no recording"
        except messages.Poison as error:
            return f"unreadable: {error}"


@click.group("dlq", context_settings=options.COMMAND_SETTINGS)
def dlq() -> None:
    """Look after messages that nobody could work on."""


@dlq.command("list", cls=options.Command)
@stacks.stack_option
@stacks.region_option
def list_letters(name: str, region: str | None) -> None:
    """List them: id, when it came, why, and which recording it is about."""
    stack = stacks.find(name, aws.require_region(region))
    with held(stack) as letters:
        for letter in letters:
            click.echo(options.one_line(f"{letter.id}  {letter.sent}  {letter.reason}  {letter.about}"))
    if not letters:
        display.say(NONE)


@dlq.command("show", cls=options.Command)
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@stacks.stack_option
@stacks.region_option
def show(ids: tuple[str, ...], name: str, region: str | None) -> None:
    """Show the whole text of messages."""
    stack = stacks.find(name, aws.require_region(region))
    with held(stack) as letters:
        for letter in _chosen(letters, ids, every=False):
            click.echo(options.one_line(letter.body))


@dlq.command("redrive", cls=options.Command)
@click.argument("ids", metavar="ID...", nargs=-1)
@all_option
@stacks.stack_option
@stacks.region_option
def redrive(ids: tuple[str, ...], name: str, region: str | None, *, every: bool) -> None:
    """Send messages to the live queue again; a recording that has its result already is passed over there."""
    _require_choice(ids, every=every)
    stack = stacks.find(name, aws.require_region(region))

    def send(letter: Letter) -> None:
        aws.sqs(stack.region).send_message(QueueUrl=stack.live_url, MessageBody=letter.body)

    _finish(stack, ids, send, every=every, deed="sent again")


@dlq.command("drop", cls=options.Command)
@click.argument("ids", metavar="ID...", nargs=-1)
@all_option
@click.option("--yes", is_flag=True, help="Delete without asking.")
@stacks.stack_option
@stacks.region_option
def drop(ids: tuple[str, ...], name: str, region: str | None, *, every: bool, yes: bool) -> None:
    """Delete messages for good; their recordings stay in the bucket."""
    _require_choice(ids, every=every)
    stack = stacks.find(name, aws.require_region(region))
    if not yes:  # what comes while a person thinks is not meant
        with held(stack) as letters:
            ids, every = tuple(letter.id for letter in _chosen(letters, ids, every=every)), False
        if ids and not click.confirm(f"delete {len(ids)} of {len(letters)} messages for good?", err=True):
            raise TranscriptionError("nothing was done")
    _finish(stack, ids, lambda _letter: None, every=every, deed="deleted")


@contextmanager
def held(stack: Stack) -> Iterator[list[Letter]]:
    """Lend all messages, which are visible again afterwards unless they were deleted; raises TranscriptionError."""
    letters: dict[str, Letter] = {}
    try:
        while fresh := [each for each in _receive(stack) if each.id not in letters]:
            letters |= {each.id: each for each in fresh}
        yield list(letters.values())
    finally:
        for letter in letters.values():
            with contextlib.suppress(TranscriptionError), aws.plainly("give a message back"):
                aws.sqs(stack.region).change_message_visibility(
                    QueueUrl=stack.dead_letter_url, ReceiptHandle=letter.receipt, VisibilityTimeout=0
                )


def _receive(stack: Stack) -> list[Letter]:
    with aws.plainly("read the dead-letter queue"):
        answer: Any = aws.sqs(stack.region).receive_message(
            QueueUrl=stack.dead_letter_url,
            MaxNumberOfMessages=AT_ONCE,
            WaitTimeSeconds=POLL_SECONDS,
            VisibilityTimeout=HOLD_SECONDS,
            MessageSystemAttributeNames=["SentTimestamp"],
            MessageAttributeNames=["reason"],
        )
    return [
        Letter(
            each["MessageId"],
            each["ReceiptHandle"],
            datetime.fromtimestamp(int(each["Attributes"]["SentTimestamp"]) / 1000, UTC).isoformat(timespec="seconds"),
            each["Body"],
            each.get("MessageAttributes", {}).get("reason", {}).get("StringValue", "failed too often"),
        )
        for each in answer.get("Messages", ())
    ]


def _require_choice(ids: tuple[str, ...], *, every: bool) -> None:
    if every == bool(ids):
        raise click.UsageError("Give either IDs or --all.")


def _chosen(letters: list[Letter], ids: tuple[str, ...], *, every: bool) -> list[Letter]:
    """Return the messages that were asked for; raises TranscriptionError for one that is not there."""
    if absent := set(ids) - {letter.id for letter in letters}:
        raise TranscriptionError(f"there is no message {', '.join(sorted(absent))} (another reader may hold it)")
    return [letter for letter in letters if every or letter.id in ids]


def _finish(stack: Stack, ids: tuple[str, ...], act: Callable[[Letter], None], *, every: bool, deed: str) -> None:
    """Do something with messages, and delete each once that is done."""
    with held(stack) as letters:
        chosen = _chosen(letters, ids, every=every)
        for letter in chosen:
            with aws.plainly(f"finish the message {letter.id}"):
                act(letter)
                aws.sqs(stack.region).delete_message(QueueUrl=stack.dead_letter_url, ReceiptHandle=letter.receipt)
            click.echo(f"{letter.id} {deed}")
    if not chosen:
        display.say(NONE)
