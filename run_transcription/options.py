"""The command line that all commands share: options, their environment variables, and how errors are said.

An option's environment variable is TRANSCRIBE_ and its longest name, the same for every command: `--batch-size` is
TRANSCRIBE_BATCH_SIZE. A command gets records, not loose values:

    @options.command("transcribe")
    @options.model_options      # → spec: ModelSpec
    @options.decoding_options   # → decoding: Decoding
    @options.format_option()    # → formats: tuple[str, ...]
    def transcribe(spec: ModelSpec, decoding: Decoding, formats: tuple[str, ...]) -> None: ...
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TextIO

import click
from click.core import ParameterSource

from run_transcription import asked, combinations, decoding_table, storage, writers
from run_transcription.errors import Rejected, TranscriptionError
from run_transcription.records import DTYPES, ENGINES, Decoding, ModelSpec

DEFAULT_MODEL = "openai/whisper-large-v3-turbo"
DEFAULT_FORMATS = ("json", "txt", "srt", "vtt")
INTERRUPTED = 130  # the exit status that a shell gives to a program ended by Ctrl-C

Function = Callable[..., Any]


def _hyphens(name: str) -> str:
    """Let --output_format, as openai/whisper spells it, mean --output-format."""
    return name.replace("_", "-")


COMMAND_SETTINGS: dict[str, Any] = {
    "token_normalize_func": _hyphens,
    "help_option_names": ["-h", "--help"],
    "show_default": True,
    "max_content_width": 100,
}


class Command(click.Command):
    """A command whose errors are one line, and whose Ctrl-C is exit status 130.

    Known errors end with status 1, wrong usage with click's 2.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for option in self.params:
            if isinstance(option, click.Option) and option.allow_from_autoenv:
                option.envvar = environment_variable(option)

    def make_context(self, *positional: Any, **named: Any) -> click.Context:
        """Read the command line; what is wrong with it is one line."""
        try:
            return super().make_context(*positional, **named)
        except click.UsageError as error:
            raise WrongUsage(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and say what went wrong in one line."""
        log_to_stderr()
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise WrongUsage(error) from error
        except TranscriptionError as error:
            raise click.ClickException(one_line(str(error))) from error
        except KeyboardInterrupt:
            click.echo("interrupted; what was finished is kept", err=True)
            end_at_once(INTERRUPTED)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _forget_output()
            raise click.ClickException(f"cannot write to {error.filename or 'the output'}: {error.strerror}") from error


def command(name: str) -> Callable[[Function], Command]:
    """Make a function a command of this program, with the settings that all of them share."""
    return click.command(name, cls=Command, context_settings=COMMAND_SETTINGS)


class WrongUsage(click.ClickException):
    """A usage error without click's three lines of usage around it."""

    exit_code = 2

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(one_line(f"{error.format_message()} (--help shows all options)"))


class BucketName(click.ParamType[str]):
    """The name of a bucket, for which its address may stand too."""

    name = "bucket"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        found = value.removeprefix(storage.SCHEME).rstrip("/")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", found):
            self.fail(f"{value!r} is no name of a bucket.", param, ctx)
        return found


def environment_variable(option: click.Option) -> str:
    """Return the variable that an option is read from, by its longest name: one for all commands that have it."""
    return "TRANSCRIBE_" + max(option.opts, key=len).lstrip("-").replace("-", "_").upper()


def model_options(function: Function) -> Function:
    """Add the options that say which model runs, where and how; the function gets `spec`, a ModelSpec."""

    @functools.wraps(function)
    def with_spec(  # noqa: PLR0913 - one parameter for each option: this is where they become a record
        *positional: Any,
        model: str | None,
        revision: str | None,
        device: str,
        dtype: str,
        attention: str,
        engine: str,
        threads: int | None,
        **others: Any,
    ) -> Any:
        if engine == "torch" and dtype.startswith("int"):
            raise click.UsageError(f"--dtype {dtype} is for another --engine than torch.")
        _limit_threads(threads)
        spec = ModelSpec(model or default_model(), revision, device, dtype, attention, engine)
        return function(*positional, spec=spec, **others)

    return _with(with_spec, _MODEL_OPTIONS)


def decoding_options(function: Function) -> Function:
    """Add the options that say how to decode; the function gets `decoding`, a Decoding."""

    @functools.wraps(function)
    def with_decoding(*positional: Any, **named: Any) -> Any:
        chosen = {field.name: named.pop(field.name) for field in dataclasses.fields(Decoding) if field.name in named}
        decoding = Decoding(**chosen)
        refuse_unused(decoding)
        return function(*positional, decoding=decoding, **named)

    return _with(with_decoding, decoding_table.OPTIONS)


def refuse_unused(decoding: Decoding, formats: tuple[str, ...] | None = None) -> None:
    """Raise UsageError for options that would change nothing, as `combinations.refuse_unused` knows them."""
    try:
        combinations.refuse_unused(decoding, formats)
    except Rejected as error:
        raise click.UsageError(f"{error}.") from error


def given_options(function: Function) -> Function:
    """Add the options that a recording may bring along; the function gets `given`: those given, a Given."""
    table = decoding_table.options()

    @functools.wraps(function)
    def with_given(*positional: Any, **named: Any) -> Any:
        source = click.get_current_context().get_parameter_source
        chosen = {name: named.pop(name) for name in table if source(name) is not ParameterSource.DEFAULT}
        others = {name: value for name, value in named.items() if name not in table}
        return function(*positional, given=asked.from_job(chosen), **others)

    decorated = _with(with_given, [add for _, add in table.values()])
    for option in decorated.__click_params__:  # type: ignore[attr-defined]
        option.show_default = False  # what is left out is the worker's choice
    return decorated


def format_option(
    default: tuple[str, ...] = DEFAULT_FORMATS, always: tuple[str, ...] = ()
) -> Callable[[Function], Function]:
    """Add -f/--output-format, given once for each format; the function gets `formats`, without repeats.

    The formats in `always` are among them whatever is given.
    """
    return click.option(
        "-f",
        "--output-format",
        "formats",
        type=click.Choice((*writers.FORMATS, "all")),
        multiple=True,
        default=default,
        show_default=" ".join(default or DEFAULT_FORMATS),
        callback=functools.partial(_formats, always),
        help="May be given several times; `all` is all but png."
        + "".join(f" {name} is always written." for name in always),
    )


def default_model() -> str:
    """Return the model baked into the image, named in <home>/default_model, else DEFAULT_MODEL."""
    try:
        return (storage.home() / "default_model").read_text(encoding="utf-8").strip() or DEFAULT_MODEL
    except OSError:
        return DEFAULT_MODEL


def end_at_once(status: int) -> NoReturn:
    """End this process without taking the interpreter apart, which takes seconds once torch is in it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def one_line(text: str) -> str:
    """Return text with line ends and other control characters escaped, since file names may hold them."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at that moment: a progress bar exchanges it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """Keeps each message on a line of its own, whatever keys and file names stand in it; a traceback may follow."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        return one_line(super().formatMessage(record))


def log_to_stderr() -> None:
    """Send this program's log lines, from INFO on, to standard error; of its libraries only warnings."""
    if not logging.getLogger().handlers:
        handler = _StandardError()
        handler.setFormatter(_OneLine("%(levelname)s %(message)s"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("run_transcription").setLevel(logging.INFO)


def _formats(
    always: tuple[str, ...], _context: click.Context, _option: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    expanded = (name for given in names for name in (writers.ALL if given == "all" else (given,)))
    return tuple(dict.fromkeys((*always, *expanded)))


def _forget_output() -> None:
    """Let what standard output did not take go nowhere: Python would try again at its end, and say so."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, no path
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _limit_threads(threads: int | None) -> None:
    """Limit the libraries that are loaded, such as numpy's BLAS, and torch, which reads a variable when it is."""
    if threads is not None:
        import threadpoolctl

        os.environ["OMP_NUM_THREADS"] = str(threads)
        threadpoolctl.threadpool_limits(threads)


def _with(function: Function, decorators: Sequence[Callable[[Function], Function]]) -> Function:
    """Apply decorators so that their options stand in the help in the order written."""
    return functools.reduce(lambda decorated, decorator: decorator(decorated), reversed(decorators), function)


_MODEL_OPTIONS = (
    click.option(
        "--model", help="Hugging Face id, folder, or `demo`.", show_default=f"the image's model, else {DEFAULT_MODEL}"
    ),
    click.option("--revision", help="Commit, tag or branch of a Hugging Face model."),
    click.option("--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", help="Where the model runs."),
    click.option(
        "--dtype",
        type=click.Choice(("auto", *DTYPES)),
        default="auto",
        help="auto: the state's, where there is one; else float16 on a GPU; on a CPU bfloat16 where it multiplies "
        "matrices natively, else float32. int8 is for other engines than torch.",
    ),
    click.option(
        "--attention",
        type=click.Choice(("sdpa", "flash_attention_2", "eager")),
        default="sdpa",
        help="Implementation of attention, in torch.",
    ),
    click.option("--engine", type=click.Choice(ENGINES), default="torch", help="What runs the model."),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Threads of the CPU to use.", show_default="one for each core"
    ),
)
