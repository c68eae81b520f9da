from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from string import Template

import pytest

from run_transcription import aws, storage
from run_transcription.sources import SqsSource
from tools import require_tool

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"
PACKAGE = ROOT / "run_transcription"


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=inherited | environment,
        text=True,
        capture_output=True,
        check=False,
    )


def locked() -> dict[str, set[str]]:
    """Return the versions in the lock by name of package."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def pins() -> list[str]:
    """Return the requirements of pyproject.toml, those of extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [*project["dependencies"], *extras]


def test_lock_names_no_machine():
    """No path, address or host stands in the lock: nothing but versions, markers and public hashes."""
    for line in LOCK.read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[\w.]+( ; [^/\\]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_lock_is_without_torch_and_what_it_brings():
    """Which torch fits is the machine's matter, and CUDA comes with it."""
    assert not [name for name in locked() if name == "triton" or name.startswith(("torch", "nvidia-", "cuda-"))]


def test_lock_holds_what_the_project_pins():
    """Each pin of pyproject.toml is in the lock in that version."""
    exact = dict(re.fullmatch(r"([a-z0-9-]+)(?:\[[^]]*\])?==(.+)", pin).groups() for pin in pins() if "==" in pin)
    assert exact.pop("torch") == re.search(r"^TORCH := torch==(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert {name: {version} for name, version in exact.items()} == {name: locked().get(name) for name in exact}


def test_every_direct_dependency_is_used():
    """What the package requires, some module of it imports; and nothing else that is not in the standard library."""
    imports = {
        name.partition(".")[0]
        for path in PACKAGE.rglob("*.py")
        for names in re.findall(r"^\s*(?:import|from) ([\w.]+)|find_spec\(\"(\w+)\"\)", path.read_text(), re.MULTILINE)
        for name in names
    } - {""}
    foreign = imports - sys.stdlib_module_names - {"run_transcription"}
    modules = metadata.packages_distributions()
    distributions = {name.lower().replace("_", "-") for module in foreign for name in modules.get(module, [])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.match(r"[a-z0-9-]+", line)[0] for line in project["dependencies"]}
    brought = {"boto3-stubs", "mypy-boto3-s3", "mypy-boto3-sqs", "botocore", "botocore-stubs", "ministack"}
    brought |= {"ctranslate2"}  # an extra
    assert required <= distributions
    assert distributions - required <= brought


def test_no_module_hides_another():
    """A script run inside the package has its folder first on sys.path: no module may bear another's name."""
    ours = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not ours & sys.stdlib_module_names
    assert not ours & set(metadata.packages_distributions())


def test_modules_fit_on_some_screens():
    """No module has more than 300 lines."""
    assert not [path.name for path in PACKAGE.rglob("*.py") if path.read_text().count("\n") > 300]


@pytest.fixture
def texts() -> dict[str, bytes]:
    """Read every file that is or could be tracked, by name."""
    files = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    return {name: (ROOT / name).read_bytes() for name in files if (ROOT / name).is_file()}


HOME = rb"(?<![\w.~-])/(home/[a-z_]|Users/[a-z_]|root/)"


def test_no_file_names_the_place_where_it_was_written(texts):
    """No tracked text holds anybody's home folder or the checkout's own path."""
    assert "README.md" in texts
    private = re.compile(HOME + b"|" + re.escape(bytes(ROOT)) + b"/", re.IGNORECASE)
    assert not {name: found[0] for name, text in texts.items() if (found := private.search(text))}


@pytest.mark.parametrize("path", ["/home" + "/jo/x", "'/root" + "/.cache", "=/Users" + "/jo/", "file:///home" + "/jo"])
def test_a_home_folder_is_recognized(path):
    """The search of the test above finds what it is for."""
    assert re.search(HOME, path.encode())


def test_no_lock_names_where_packages_came_from(texts):
    """An index of one's own, or any host, in a lock would be asked by everybody who installs from it."""
    locks = {name: text for name, text in texts.items() if "lock" in Path(name).name.lower()}
    assert "requirements.lock" in locks
    assert not [name for name, text in locks.items() if re.search(rb"index-url|find-links|trusted-host|://", text)]


def test_make_alone_lists_every_target():
    """`make` prints each target with what it does."""
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    lines = run("make").stdout.splitlines()
    assert [line.split()[1] for line in lines] == targets
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize(
    ("lacking", "package"),
    [("version", "python3.11"), ("ensurepip", "python3-venv"), ("git", "git")],
)
def test_setup_names_what_is_lacking(tmp_path, lacking, package):
    """`make setup` stops with one line that names what is missing and the Debian package that brings it."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "make", *(["git"] if lacking != "git" else [])):
        (programs / name).symlink_to(shutil.which(name))
    python = programs / "python3"
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *{"version_info" if lacking == "version" else lacking}*) exit 1;; esac\n'
    )
    python.chmod(0o755)
    result = run("make", "setup", cwd=tmp_path, PATH=str(programs))
    assert result.returncode != 0
    assert [line for line in result.stderr.splitlines() if not line.startswith("make: ***")] == [
        next(line for line in result.stderr.splitlines() if line.endswith(f"apt-get install {package}"))
    ]


@pytest.fixture
def bare(tmp_path):
    """Make a folder that stands for PATH, with little in it and an apt-get that writes down what it is asked for."""
    for name in ("sh", "make", "id"):
        (tmp_path / name).symlink_to(shutil.which(name))
    (tmp_path / "apt-get").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "sudo").write_text('#!/bin/sh\n"$@"\n')
    (tmp_path / "sudo").chmod(0o755)
    return str(tmp_path)


def test_tools_asks_for_the_packages_of_what_is_lacking(bare):
    """A program and its package may have two names; what is there already is not asked for."""
    rows = "sh:dash no-such-sshd:openssh-server /no/such/packer:packer"
    *_, install = run("make", "tools", f"TOOLS={rows}", PATH=bare).stdout.splitlines()
    assert install.startswith("install ")
    assert install.endswith("--no-install-recommends openssh-server packer")


def test_tools_costs_nothing_where_all_is_there(bare):
    """A build machine calls it before each run: the package manager isn't even asked."""
    result = run("make", "tools", "TOOLS=sh:dash make:make", PATH=bare)
    assert (result.returncode, result.stdout) == (0, "")


def test_tools_has_whatever_a_test_asks_for():
    """Each program that a test can't do without has its row, and each row its package."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    rows = re.search(r"^TOOLS := (.+)$", text, re.MULTILINE)[1].split()
    programs = dict(row.split(":") for row in rows)
    asked = {
        name for path in (ROOT / "tests").glob("*.py") for name in re.findall(r'l\("([\w-]+)"\)', path.read_text())
    }
    assert asked - {"no-such-tool"} <= {Path(name).name for name in programs}
    assert all(programs.values())


@pytest.mark.parametrize("status", [0, 1])
def test_ci_ends_as_the_tests_do(tmp_path, status):
    """`.ci/run` calls `make test` with CI=true, from any folder, and fails where it fails."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(f"test:\n\t@echo CI is $(CI); exit {status}\n")
    result = run(tmp_path / ".ci/run", cwd=Path("/"))
    assert "CI is true" in result.stdout
    assert (result.returncode == 0) is (status == 0)


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_tool_skips_and_in_ci_fails(monkeypatch, ci, outcome):
    """Without a program its tests skip, with the one command that installs it; on a build machine they fail."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no-such-tool is lacking: run `make tools`"):
        require_tool("no-such-tool")


def test_readme_shows_demo_and_test_first():
    """A newcomer's first two commands are make demo and make test."""
    commands = re.findall(r"^(make \w+|\.venv/\S+ \w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands[:2] == ["make demo", "make test"]


def test_links_of_the_documents_lead_somewhere():
    """Every relative link in the documents is a file."""
    for document in ROOT.glob("*.md"):
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
            assert (ROOT / link).exists(), f"{document.name}: {link}"


def test_the_queue_of_the_readme_gets_what_is_uploaded(emulator):
    """What a newcomer types makes a queue with dead letters, which hears of uploads and lets none but S3 send."""
    names = {"ARN": "arn:aws:sqs:us-east-1:000000000000", "ACCOUNT": "000000000000", "BUCKET": "readme"}
    found = re.findall(
        r"^cat > (\w+)\.json <<END\n(.+?)^END$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    settings = {name: json.loads(Template(text).substitute(names)) for name, text in found}
    (statement,) = json.loads(settings["queue"]["Policy"])["Statement"]
    assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": "000000000000"}
    assert statement["Condition"]["ArnLike"] == {"aws:SourceArn": "arn:aws:s3:::readme"}
    aws.sqs().create_queue(QueueName="transcribe-dead")
    url = aws.sqs().create_queue(QueueName="transcribe", Attributes=settings["queue"])["QueueUrl"]
    aws.s3().create_bucket(Bucket="readme")
    aws.s3().put_bucket_notification_configuration(Bucket="readme", NotificationConfiguration=settings["notification"])
    source = SqsSource(url)
    source.receive().finish()  # S3's test event
    storage.store("s3://readme/elsewhere/a.wav", b"sound")
    storage.store("s3://readme/uploads/a.wav", b"sound")
    assert [upload.address for upload in source.receive().uploads] == ["s3://readme/uploads/a.wav"]
    attributes = aws.sqs().get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])["Attributes"]
    of_the_stack = int(re.search(r"maxReceiveCount: (\d+)", (ROOT / "infra/stack.yaml").read_text())[1])
    assert int(json.loads(attributes["RedrivePolicy"])["maxReceiveCount"]) == of_the_stack


def test_contributing_has_the_layers_that_are_checked():
    """The table of layers is that of pyproject.toml: every module stands in its layer."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    checked = [{name for name in re.split(r"[ |:]+", layer) if "(" not in name} for layer in contract["layers"]]
    rows = re.findall(r"^\| \d+ \| (.+) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    shown = [set(re.findall(r"`(\w+)`", row.partition(":")[0])) for row in rows]
    assert shown == checked[::-1]


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"], ["lint-imports"]])
def test_the_code_is_in_order(command):
    """Ruff finds nothing, the format is its own, types fit, and imports point upwards only."""
    result = run(Path(sys.executable).with_name(command[0]), *command[1:])
    assert result.returncode == 0, result.stdout + result.stderr


def test_shell_scripts_are_in_order():
    """Shellcheck finds nothing in our scripts."""
    scripts = [path for path in (ROOT / ".ci").iterdir() if path.read_text().startswith("#!")]
    result = run(require_tool("shellcheck"), *scripts)
    assert result.returncode == 0, result.stdout
