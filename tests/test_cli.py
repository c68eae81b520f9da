from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from fakes import document, tone

from run_transcription import __main__ as program
from run_transcription import doctor, options, storage
from run_transcription import schema as result_schema

HEAVY = ("torch", "transformers", "librosa", "numpy", "av", "boto3", "matplotlib")
NUMBER_OF_HEAVY = f"import sys; print(sum(name in sys.modules for name in {HEAVY}), file=sys.stderr)"


@pytest.fixture
def talk(tmp_path):
    return tone(tmp_path / "talk.wav", seconds=2)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own as home and as working folder."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRANSCRIBE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **environment: str):
    """Run the program in this process."""
    return CliRunner().invoke(program.main, [str(argument) for argument in arguments], env=environment)


def start(*arguments: str, **settings) -> subprocess.Popen:
    """Run Python in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen(command, text=True, **streams)


def test_help_is_fast_and_imports_nothing_heavy():
    """--help takes well under a second of one core, since neither torch nor any other heavy library is imported."""
    script = "import sys, run_transcription.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    spent = "\nimport time; print(time.process_time(), file=sys.stderr)"
    process = start("-c", script + NUMBER_OF_HEAVY + spent)
    output, errors = process.communicate()
    heavy, seconds = errors.splitlines()
    assert "transcribe" in output
    assert heavy == "0"
    assert float(seconds) < 0.8


@pytest.mark.parametrize(("name", "place", "purpose"), program.COMMANDS)
def test_every_command_is_there_and_does_what_the_list_says(name, place, purpose):
    """Each row leads to a command of that name, and its own help begins with the row's sentence and nothing more."""
    module, attribute = place.split(":")
    command = getattr(importlib.import_module(module), attribute)
    assert command.name == name
    assert command.help.split("\n\n")[0] == purpose
    assert purpose in run(name, "--help").stdout
    assert re.search(rf"^  {name} +{re.escape(purpose)}$", run("--help").stdout, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name, _, _ in program.COMMANDS])
def test_an_option_has_one_variable_for_every_command(monkeypatch, name):
    """TRANSCRIBE_ and the option's long name, whatever the command calls the value; some say that they have none."""
    command = program.main.get_command(None, name)
    context = click.Context(command, **command.context_settings)
    for option in (found for found in command.params if isinstance(found, click.Option)):
        long = max(option.opts, key=len)
        monkeypatch.setenv("TRANSCRIBE_" + long.removeprefix("--").replace("-", "_").upper(), "7")
        assert option.resolve_envvar_value(context) == ("7" if option.allow_from_autoenv else None), long


def test_options_that_end_at_once_have_no_variable(here):
    """A variable that is left over must not make every command print the version, or its help."""
    result = run("schema", TRANSCRIBE_VERSION="1", TRANSCRIBE_HELP="1")
    assert json.loads(result.stdout) == result_schema.schema()


def test_threads_limit_torch_and_what_numpy_multiplies_with():
    """`--threads 1` is one thread for both, though numpy is loaded before the option is read."""
    script = "import sys, run_transcription.__main__ as m, numpy\nm.main(standalone_mode=False)\nimport torch\n"
    script += "from threadpoolctl import threadpool_info\n"
    script += "print([torch.get_num_threads()] + [pool['num_threads'] for pool in threadpool_info()])"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    arguments = ("doctor", "--threads", "1", "--model", "demo")
    output, errors = start("-c", script, *arguments, env=environment).communicate()
    pools = json.loads(output.splitlines()[-1]) if output else errors
    assert len(pools) > 1
    assert set(pools) == {1}, pools


@pytest.mark.parametrize("name", ["transcribe", "worker", "doctor"])
def test_help_of_a_command_does_not_import_torch(name):
    """The help of a command that uses the model waits for no model library either."""
    process = start("-X", "importtime", "-m", "run_transcription", name, "--help")
    output, errors = process.communicate()
    assert "--model" in output
    imported = {line.rpartition("|")[2].strip() for line in errors.splitlines()}
    assert not imported & {"torch", "transformers", "librosa", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "tpu"),
        (["--dtype", "float64"], "float64"),
        (["--task", "sing"], "sing"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "many"], "many"),
        (["--chunk-length", "31"], "--chunk-length"),
        (["--chunk-length", "nan"], "--chunk-length"),
        (["--threads", "0"], "--threads"),
        (["-f", "docx"], "docx"),
        (["-f", "srt", "-f", "txt"], "-o"),
        (["-f", "png"], "-o"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_value_is_named_in_one_line(here, talk, arguments, said):
    """A value that an option doesn't take ends with status 2 and one line that names it."""
    result = run("transcribe", talk, *arguments)
    line = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2
    assert said in line
    assert line.startswith("Error: ")
    assert result.stdout == ""


def test_underscores_mean_hyphens(here, talk, model):
    """openai/whisper's spelling of options is understood."""
    result = run(
        "transcribe", talk, "--output_dir", "out", "--output_format", "txt", "--batch_size", 2, "--model", model
    )
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (here / "out").iterdir()] == ["talk.txt"]


def test_every_option_has_an_environment_variable(here, talk, model):
    """TRANSCRIBE_ and the option's name: the value counts as if it were on the command line."""
    environment = {"TRANSCRIBE_MODEL": model, "TRANSCRIBE_OUTPUT_DIR": "out", "TRANSCRIBE_OUTPUT_FORMAT": "json srt"}
    result = run("transcribe", talk, **environment, TRANSCRIBE_LANGUAGE="de", TRANSCRIBE_DTYPE="float32")
    assert result.exit_code == 0, result.stderr
    said = document((here / "out/talk.json").read_bytes())
    assert (here / "out/talk.srt").exists()
    assert said["options"]["language"] == "de"
    assert said["model"]["dtype"] == "float32"
    assert run("transcribe", talk, TRANSCRIBE_BATCH_SIZE="none").exit_code == 2


def test_text_goes_to_standard_output_and_nothing_else_does(here, talk, model):
    """Without -o standard output is the same as the txt file; progress and numbers go to standard error."""
    printed = run("transcribe", talk, "--model", model)
    stored = run("transcribe", talk, "--model", model, "-o", "out", "-f", "txt")
    assert printed.exit_code == stored.exit_code == 0
    assert printed.stdout_bytes == (here / "out/talk.txt").read_bytes()
    assert stored.stdout == ""
    assert "RTFx" in printed.stderr
    assert printed.stderr.endswith("no speech was found\n")  # but a tone


def test_one_bad_file_does_not_stop_the_others(here, talk, model):
    """The others are done, the bad ones are named with their reasons at the end, and the status is 1."""
    (here / "bad.wav").write_text("no sound at all")
    result = run("transcribe", "bad.wav", talk, "none.wav", "--model", model, "-o", "out")
    assert result.exit_code == 1
    assert {path.name for path in (here / "out").iterdir()} == {f"talk.{name}" for name in options.DEFAULT_FORMATS}
    first, second, last = result.stderr.strip().splitlines()[-3:]
    assert first.startswith("FAILED bad.wav: not_audio")
    assert second.startswith("FAILED none.wav: not_found")
    assert last == "2 of 3 recordings failed"
    assert "Traceback" not in result.stderr


def test_what_cannot_be_looked_at_does_not_stop_the_others(here, talk, model, emulator):
    """A name too long for the system and a bucket that isn't there fail by their names; the good one is done."""
    long = f"{'n' * 300}.wav"
    result = run("transcribe", long, talk, "s3://no-such-bucket/x.wav", "--model", model, "-o", "out", "-f", "txt")
    assert result.exit_code == 1
    assert [path.name for path in (here / "out").iterdir()] == ["talk.txt"]
    first, second, last = result.stderr.strip().splitlines()[-3:]
    assert first.startswith(f"FAILED {long}: ")
    assert second.startswith("FAILED s3://no-such-bucket/x.wav: ")
    assert last == "2 of 3 recordings failed"


@pytest.mark.parametrize("command", ["transcribe", "schema"])
def test_an_output_that_takes_nothing_is_one_line(here, talk, model, command):
    """A full disk ends the program in one line, and Python says nothing of it afterwards."""
    arguments = (command, "talk.wav", "--model", model) if command == "transcribe" else (command,)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        process = start("-m", "run_transcription", *arguments, cwd=here, stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 1
    said = [line for line in errors.splitlines() if not line.startswith("INFO ")]
    assert said == ["Error: cannot write to the output: No space left on device"]


def test_a_reader_that_is_gone_is_no_error(here):
    """`… | head` may end before everything is written: nothing is said of it."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start("-m", "run_transcription", "schema", stdout=writing)
    os.close(writing)
    _, errors = process.communicate()
    assert errors == ""


def test_a_bad_file_among_printed_ones_is_named_with_its_code(here, talk, model):
    """With the text on standard output a bad file is said in the same words as with -o."""
    (here / "bad.wav").write_text("no sound at all")
    result = run("transcribe", talk, "bad.wav", "--model", model)
    assert result.exit_code == 1
    assert result.stdout == run("transcribe", talk, "--model", model).stdout
    assert result.stderr.strip().splitlines()[-2].startswith("FAILED bad.wav: not_audio: ")


def test_bad_files_alone_never_cost_the_model(here):
    """Where no recording can be opened, torch isn't even imported."""
    (here / "empty.wav").touch()
    script = "import sys, run_transcription.__main__ as m\ntry: m.main()\nexcept SystemExit as e: print(e.code)\n"
    script += "print('torch' in sys.modules)"
    output, errors = start("-c", script, "transcribe", "empty.wav", "none.wav").communicate()
    assert output == "1\nFalse\n"
    assert "FAILED empty.wav: empty_file" in errors


def test_output_that_cannot_be_written_is_found_before_the_model_loads(here, talk):
    """A folder that can't be made is one line at once, though the model named isn't there either."""
    (here / "file").touch()
    result = run("transcribe", talk, "-o", "file/out", "--model", "no/such/model")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot write into file/out: ")
    assert len(result.stderr.splitlines()) == 1


def test_names_of_any_kind(here, model):
    """Spaces, plus signs, quotes, line ends, accents and emoji in a name reach the result's name unchanged."""
    name = "a b+c \"d' é\n🎤"
    tone(here / f"{name}.wav", seconds=1)
    result = run("transcribe", f"{name}.wav", "--model", model, "-o", "out", "-f", "txt")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (here / "out").iterdir()] == [f"{name}.txt"]
    assert "\\n🎤" in result.stderr.splitlines()[-1]


def test_an_error_about_a_strange_name_is_one_line(here):
    """Control characters of a name are escaped where it is said."""
    result = run("transcribe", "no\n\x1b[31msuch.wav")
    assert "FAILED no\\n\\x1b[31msuch.wav: not_found" in result.stderr


def test_a_folder_keeps_apart_what_would_collide(here, model):
    """Two recordings of one name in two folders give two results."""
    for folder in ("x", "y"):
        (here / "in" / folder).mkdir(parents=True)
        tone(here / "in" / folder / "talk.wav", seconds=1)
    assert run("transcribe", "in", "--model", model, "-o", "out", "-f", "txt").exit_code == 0
    assert sorted(str(path.relative_to(here / "out")) for path in (here / "out").rglob("*.txt")) == [
        "x/talk.txt",
        "y/talk.txt",
    ]


def test_the_script_runs_from_any_folder(here, talk, model):
    """`python …/fast_transcribe.py talk.wav` is the same as the command, wherever one stands."""
    script = Path(program.__file__).with_name("fast_transcribe.py")
    process = start(script, "talk.wav", "--model", model, cwd=here)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output == run("transcribe", talk, "--model", model).stdout


def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(here, talk, model):
    """After SIGINT the program ends within seconds with status 130, no traceback, and the first result whole."""
    tone(here / "talk2.wav", seconds=1200)
    process = start(
        *("-m", "run_transcription", "transcribe", "talk.wav", "talk2.wav", "--model", model),
        *("-o", "out", "--batch-size", "1", "--no-vad"),  # a tone is no speech
        cwd=here,
    )
    deadline = time.monotonic() + 240
    while not (here / "out/talk.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    interrupted = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert time.monotonic() - interrupted < 5
    assert "Traceback" not in errors
    assert document((here / "out/talk.json").read_bytes())["status"] == "COMPLETED"
    assert not list((here / "out").glob("talk2*"))


def test_schema_is_that_of_results():
    """`schema` prints the JSON Schema that results follow."""
    assert json.loads(run("schema").stdout) == result_schema.schema()


def test_doctor_says_which_strategy_wins(here, model):
    """`doctor --json` names device, dtype, attention, the strategy that loaded the model, and versions."""
    result = run("doctor", "--json", "--model", model, "--dtype", "float32", "--attention", "eager")
    found = json.loads(result.stdout)
    assert result.exit_code == 0, result.stderr
    assert (found["model"]["device"], found["model"]["dtype"], found["model"]["attention"]) == (
        "cpu",
        "float32",
        "eager",
    )
    assert found["load"]["strategy"] == "mmap"
    assert [skip["strategy"] for skip in found["load"]["skipped"]] == ["gpu_state"]
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["home"] == os.environ["TRANSCRIBE_HOME"]


def test_doctor_names_the_trouble_and_says_the_rest(here):
    """Without a model there is still a report; it says what is wrong, and the status is 1."""
    (here / "broken").mkdir()
    result = run("doctor", "--model", "./broken")
    assert result.exit_code == 1
    assert "NOT LOADED" in result.stdout
    assert "transformers" in result.stdout


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_doctor_outlives_a_package_that_cannot_be_imported(here, missing):
    """What is broken is what a doctor is asked about: it is named, with the remedy, and no traceback."""
    script = f"import sys; sys.modules[{missing!r}] = None; import run_transcription.__main__ as m; m.main()"
    process = start("-c", script, "doctor", "--model", "demo")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert errors.count("Traceback") == 0
    line = next(line for line in output.splitlines() if "NOT LOADED" in line)
    assert missing in line
    assert line.endswith("run make setup")


def test_doctor_names_packages_that_are_not_installed(monkeypatch):
    """A package without its files, and the program itself run from a bare checkout, are MISSING."""

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert doctor._version("torch") is None
    monkeypatch.setattr(metadata, "requires", absent)
    assert doctor._needed() == ["run-transcription"]


def test_doctor_knows_every_package_that_is_required():
    """The list comes from the package's own requirements: no extra, and torch among them."""
    assert "torch" in doctor._needed()
    assert "pytest" not in doctor._needed()


def test_the_image_may_name_the_default_model(here):
    """The file default_model in the home folder wins over the built-in default."""
    assert options.default_model() == options.DEFAULT_MODEL
    (here / "home").mkdir()
    (here / "home/default_model").write_text("/opt/transcribe/models/some\n")
    assert options.default_model() == "/opt/transcribe/models/some"


def test_all_formats_are_written_at_once(here, talk, model):
    """`-f all` is every format but the picture, and a format named twice is written once."""
    result = run("transcribe", talk, "--model", model, "-o", "out", "-f", "srt", "-f", "all")
    assert result.exit_code == 0, result.stderr
    assert {path.name.partition(".")[2] for path in (here / "out").iterdir()} == {
        "json", "txt", "srt", "vtt", "tsv", "aws.json", "html",
    }  # fmt: skip
    assert [line.count(".srt") for line in result.stderr.splitlines() if "RTFx" in line] == [1]


def test_from_s3_to_s3(here, talk, model, stack):
    """A prefix is searched, results go below another prefix, and an object that isn't there is named."""
    root = f"s3://{stack.bucket}"
    storage.upload(talk, f"{root}/in/x/talk one+.wav")
    storage.store(f"{root}/in/notes.txt", b"no recording")
    result = run("transcribe", f"{root}/in", f"{root}/none.wav", "--model", model, "-o", f"{root}/out", "-f", "txt")
    assert result.exit_code == 1
    assert list(storage.listing(f"{root}/out/")) == [f"{root}/out/talk one+.txt"]
    assert f"FAILED {root}/none.wav: not_found" in result.stderr
    printed = run("transcribe", f"{root}/in/x/talk one+.wav", "--model", model)
    assert printed.stdout_bytes == storage.read(f"{root}/out/talk one+.txt")


@pytest.mark.parametrize(
    "wrong", [("--threads", "x"), ("--chunk-length", "31"), ("--dtype", "int8"), ("--nonsense",), ("-f", "doc")]
)
def test_wrong_usage_is_one_line(wrong):
    """A bad value or an unknown option is said in one line that names it, and the exit status is click's 2."""
    done = run("transcribe", "talk.wav", *wrong)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert wrong[0] in done.stderr
