"""The program `run-transcription`: one group over all commands, each imported only when it is called."""

from __future__ import annotations

import importlib
from typing import cast

import click

from run_transcription import __version__, options

# name, where it is, and what it does: written here too, since the help must not import them all
COMMANDS = (
    ("transcribe", "run_transcription.fast_transcribe:transcribe", "Transcribe files, folders or s3:// addresses."),
    ("worker", "run_transcription.worker:worker", "Transcribe what arrives in a queue or a folder."),
    ("submit", "run_transcription.submit:submit", "Upload recordings to the bucket that a worker serves."),
    ("results", "run_transcription.find_results:find_results", "Show what workers have made of a recording."),
    ("demo", "run_transcription.demo.command:demo", "Run the main job on an embedded S3 and SQS."),
    ("preload", "run_transcription.gpu_memory_persist:main", "Make the state of a model, which loads faster."),
    ("convert", "run_transcription.convert:main", "Make a model's own form for another engine."),
    ("load", "run_transcription.optimized_loader:main", "Try every way to load the model."),
    ("prefetch", "run_transcription.prefetch:prefetch", "Read the state into the page cache, as at boot."),
    ("bake", "run_transcription.bake:bake", "Make the machine image that workers start from, and prove it."),
    ("ami", "run_transcription.ami:ami", "Publish, list and remove machine images."),
    ("deploy", "run_transcription.deploy:deploy", "Make the stack, or change it to what is given."),
    ("destroy", "run_transcription.deploy:destroy", "Remove the stack, and keep its bucket unless told otherwise."),
    ("status", "run_transcription.status:status", "Say how the stack is doing."),
    (
        "attach-bucket",
        "run_transcription.attach_bucket:attach_bucket",
        "Transcribe what is uploaded to a bucket that is there already.",
    ),
    (
        "backfill",
        "run_transcription.backfill:backfill",
        "Have everything transcribed that lies in a bucket already.",
    ),
    (
        "batch-array",
        "run_transcription.batch_array:batch_array",
        "Start workers as an array of AWS Batch.",
    ),
    ("dlq", "run_transcription.dead_letters:dlq", "Look after messages that nobody could work on."),
    ("logs", "run_transcription.worker_logs:logs", "Show what the workers have logged."),
    ("doctor", "run_transcription.doctor:doctor", "Say what is installed here, and how the model would be loaded."),
    ("schema", "run_transcription.doctor:schema", "Print the JSON Schema of results."),
)


class Commands(click.Group):
    """The rows of COMMANDS as a click group."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        """Return the names in the order of the rows."""
        return [name for name, _, _ in COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the module of one command."""
        where = {name: place for name, place, _ in COMMANDS}.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        return cast("click.Command", getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands from the rows alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, _, purpose in COMMANDS])


@click.group("run-transcription", cls=Commands, context_settings=options.COMMAND_SETTINGS)
@click.version_option(__version__)
def main() -> None:
    """Transcribe recordings with Whisper, from files or as a worker of an S3 bucket.

    Every option has an environment variable: --model is TRANSCRIBE_MODEL, for every command the same.
    """


if __name__ == "__main__":
    main(prog_name="run-transcription")
