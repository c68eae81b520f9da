"""The container image without docker: what it copies is there, what it calls exists, and it does what the bake does."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from cfnlint.decode import decode

from run_transcription import options, worker
from run_transcription.gpu_memory_persist import main as preload

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "infra/Dockerfile").read_text().replace("\\\n", "")
STEPS = re.findall(r"^(FROM|ARG|ENV|COPY|RUN|USER|WORKDIR|CMD) +(.+)$", TEXT, re.MULTILINE)


def steps(kind):
    """Return the arguments of all steps of a kind."""
    return [rest for name, rest in STEPS if name == kind]


def test_every_line_is_a_step():
    """What is no comment is an instruction that these tests know."""
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(STEPS)


def test_what_is_copied_is_there_and_is_let_in():
    """Each source is in the checkout, and the list of what docker may see names exactly these."""
    copied = {word for step in steps("COPY") for word in step.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    lines = (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert "*" in lines


def test_what_the_package_is_built_from_is_copied(tmp_path):
    """The wheel of the copied files alone has the template, the demo model and the command."""
    for step in steps("COPY"):
        *sources, target = step.split()
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if target.endswith("/"):
            place.mkdir(exist_ok=True)
        subprocess.run(["cp", "-rP", *(str(ROOT / name) for name in sources), place], check=True)
    project = tomllib.loads((tmp_path / "build/pyproject.toml").read_text())["project"]
    assert (tmp_path / "build" / project["readme"]).is_file()
    template = tmp_path / "build/run_transcription/stack.yaml"
    assert template.read_bytes() == (ROOT / "infra/stack.yaml").read_bytes()
    assert project["scripts"]["run-transcription"] == "run_transcription.__main__:main"


def test_everything_is_installed_by_its_hash_and_nothing_as_root_at_the_end():
    """No package comes without a hash, the build looks for none, and the worker is no root."""
    pips = [command for step in steps("RUN") for command in step.split("&&") if "pip install" in command]
    assert len(pips) == 3
    assert all("--no-deps" in command for command in pips)
    assert all("--require-hashes" in command for command in pips[:2])
    assert "--no-index" in pips[2]
    assert [f"--uid {user} " in step for user in steps("USER") for step in steps("RUN") if "useradd" in step] == [True]
    assert [kind for kind, _ in STEPS].index("USER") > [kind for kind, _ in STEPS].index("RUN")


def test_the_image_does_what_the_job_definition_asks_for():
    """Its command is that of the array's jobs, its model that of the package, and all its options are there."""
    found, _ = decode(str(ROOT / "infra/batch.yaml"))
    container = found["Resources"]["Worker"]["Properties"]["ContainerProperties"]
    assert container["Command"] == ["run-transcription", "worker", "--once"]
    assert steps("CMD") == ['["run-transcription", "worker", "--once"]']
    assert f"MODEL={options.DEFAULT_MODEL}" in steps("ARG")
    (made,) = [command for step in steps("RUN") for command in step.split("&&") if "run-transcription" in command]
    known = {name for option in preload.params for name in option.opts}
    assert set(re.findall(r"--[\w-]+", made)) <= known
    told = {each["Name"] for each in container["Environment"]} - {"AWS_DEFAULT_REGION"}
    assert told <= {options.environment_variable(option) for option in worker.worker.params}
