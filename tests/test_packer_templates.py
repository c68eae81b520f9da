"""Packer's templates: two sources that are alike, variables that are explained, scripts that are strict."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import hcl2
import pytest
from click.testing import CliRunner

from run_transcription import bake, bake_parts, packer_process
from tools import require_tool

PACKER = Path(__file__).parents[1] / "packer"
SCRIPTS = sorted((PACKER / "provisioners").glob("*.sh"))
ONLY_MODERN = {"metadata_options", "imds_support"}


def source(name: str) -> dict:
    """Return the one source of a template."""
    (found,) = read(name)["source"]
    (kind,) = found.values()
    (settings,) = kind.values()
    return {key: value for key, value in settings.items() if not key.startswith("__")}


def read(name: str) -> dict:
    """Return a template as its reader gives it."""
    with (PACKER / name).open(encoding="utf-8") as file:
        return hcl2.load(file)


def test_both_sources_say_the_same():
    """The compatible source lacks what old packer refuses, and differs in nothing else."""
    modern, compatible = source("source.pkr.hcl"), source("compat/source.pkr.hcl")
    assert modern.keys() - compatible.keys() == ONLY_MODERN
    assert {key: value for key, value in modern.items() if key not in ONLY_MODERN} == compatible


def test_the_builder_and_the_image_want_a_token():
    """IMDSv2 is asked for on both, volumes are encrypted gp3, and builders are found by a tag."""
    modern = source("source.pkr.hcl")
    (metadata,) = modern["metadata_options"]
    assert unquoted(metadata["http_tokens"]) == "required"
    assert unquoted(modern["imds_support"]) == "v2.0"
    assert all(mapping["encrypted"] is True for mapping in modern["launch_block_device_mappings"])
    assert {unquoted(mapping["volume_type"]) for mapping in modern["launch_block_device_mappings"]} == {"gp3"}
    assert "transcribe:role" in str(modern["run_tags"])


def unquoted(text: str) -> str:
    """Return a string without the quotation marks that the reader may leave on it."""
    return text.strip('"')


def test_every_variable_is_explained_and_checked():
    """Each has a description, a type, and a rule that refuses what does not fit."""
    for each in read("variables.pkr.hcl")["variable"]:
        for name, facts in each.items():
            assert {"description", "type", "validation"} <= facts.keys(), name


def test_the_image_must_bring_what_a_stack_starts():
    """The program that validation looks for is the one that the stack's user data calls."""
    variables = {name: facts for each in read("variables.pkr.hcl")["variable"] for name, facts in each.items()}
    (facts,) = (found for name, found in variables.items() if unquoted(name) == "log_agent")
    agent = unquoted(facts["default"])
    assert agent.endswith("/amazon-cloudwatch-agent-ctl")
    assert f"- - {agent}\n" in (PACKER.parent / "infra/stack.yaml").read_text()


def test_plugins_stand_alone():
    """Old packer refuses the block, so it has a file of its own that is left out there."""
    found = {path.name for path in PACKER.rglob("*.pkr.hcl") if "required_plugins" in path.read_text()}
    assert found == {"plugins.pkr.hcl"}
    assert "plugins.pkr.hcl" not in bake_parts.COMPATIBLE


def test_every_script_is_a_step():
    """No script is forgotten, and none is called that is not there."""
    called = bake_parts.steps(PACKER)
    assert sorted(called) == [path.stem for path in SCRIPTS]
    assert called[-2:] == ["validate-image", "write-bill"]


def test_only_one_step_gets_the_token():
    """The token is in the environment of the script that fetches the model, by a file that is removed first."""
    blocks = [
        block for block in (PACKER / "build.pkr.hcl").read_text().split("\n  provisioner ") if "var.hf_token" in block
    ]
    assert len(blocks) == 1
    assert "cache-model.sh" in blocks[0]
    assert "use_env_var_file = true" in blocks[0]
    assert "local.execute_with_token" in blocks[0]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_strict(script):
    """Each ends at the first error and at a variable that is not set, and says in a line what it is for."""
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


def test_scripts_pass_shellcheck():
    """Shellcheck finds nothing in the scripts of the bake."""
    command = [require_tool("shellcheck"), *SCRIPTS, bake_parts.CHECKOUT / "run_transcription/build_ami.sh"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_locks_are_part_of_the_lock():
    """The worker's lock is a part of requirements.lock, hashes too; torch's agrees where both have a package."""
    everything, worker = locked(bake_parts.CHECKOUT / "requirements.lock"), locked(PACKER / "worker.lock")
    assert worker.items() <= everything.items()
    torch = locked(PACKER / "torch-cuda.lock")
    both = {name for name, _ in torch} & {name for name, _ in everything}
    assert {key for key in torch if key[0] in both} <= everything.keys()
    assert ("torch", "2.13.0") in torch
    assert all(hashes for hashes in (*worker.values(), *torch.values()))


def locked(path: Path) -> dict[tuple[str, str], frozenset[str]]:
    """Return the hashes in a lock, by name and version."""
    entries = re.split(r"\n(?=\S)", path.read_text().strip())
    found = {}
    for entry in entries:
        name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;\\]+)", entry).groups()
        found[name, version] = frozenset(re.findall(r"sha256:[0-9a-f]{64}", entry))
    return found


def test_a_release_pins_a_commit():
    """Not a branch, which names something else tomorrow."""
    pins = bake_parts.pins(PACKER)
    assert re.fullmatch(r"[0-9a-f]{40}", pins["model_revision"])
    assert int(pins["minimum_driver"]) >= 580


def test_the_base_image_is_pinned_in_place(tmp_path):
    """Id and name are written where they stand, and nothing else is changed."""
    (tmp_path / bake_parts.RELEASE).write_text((PACKER / bake_parts.RELEASE).read_text())
    bake_parts.pin_base(tmp_path, "ami-0123456789abcdef0", "Base image 1")
    found = bake_parts.pins(tmp_path)
    assert (found["base_image_id"], found["base_image_name"]) == ("ami-0123456789abcdef0", "Base image 1")
    assert found["model"] == bake_parts.pins(PACKER)["model"]


def test_a_dry_run_pins_nothing():
    """What changes nothing can't write the base image down."""
    done = CliRunner().invoke(bake.bake, ["--pin-base", "--dry-run"])
    assert done.exit_code == 2
    assert "choose one" in done.output


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--region eu-west-99", "--region eu-west-99: AWS has no region of that name"),
        ("--var volume_gigabyte=80", "--var volume_gigabyte: it is none of log_agent, minimum_driver, minimum_free"),
        ("--var model=openai/whisper-tiny", "--var model: use --model instead"),
        ("--var spot=false", "--var spot: use --spot or --on-demand instead"),
        ("--var base_image_id=ami-0123456789abcdef0", "--var base_image_id: use release.pkrvars.hcl instead"),
        ("--var parts=/tmp", "--var parts: it is none of"),
        ("--var volume_gigabytes", "--var volume_gigabytes: give it a value, as volume_gigabytes=VALUE"),
        ("--zone us-east-1a", "--zone us-east-1a: it is none of eu-west-1, as eu-west-1a is"),
        ("--zone eu-west-1", "--zone eu-west-1: it is none of eu-west-1, as eu-west-1a is"),
        ("--zone eu-west-1a --subnet subnet-12345678", "a subnet is in one zone already, so give one of the two"),
    ],
)
def test_what_can_not_be_meant_is_said_before_anything_is_done(monkeypatch, options, problem):
    """In one line, with nobody asked, and without packer."""
    monkeypatch.setenv("PACKER", "no-packer-is-here")
    done = CliRunner().invoke(bake.bake, ["--dry-run", "--region", "eu-west-1", *options.split()])
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert problem in done.output


@pytest.mark.parametrize(
    ("options", "token", "problem"),
    [
        (["--var", "volume_gigabytes=3"], "", "--var volume_gigabytes: The volume_gigabytes must be from 8 to 1000."),
        (["--var", "minimum_driver=new"], "", "--var minimum_driver: The value for minimum_driver is not compatible "),
        (["--name", "my image"], "", "--name: The ami_name must be 3 to 128 letters, digits or ()./_- ."),
        (
            ["--instance-type", "large"],
            "",
            "--instance-type: The instance_types must be types of instances, such as m7i.xlarge.",
        ),
        ([], "hf_no token", "HF_TOKEN: The hf_token must be letters, digits and _ ."),
    ],
)
def test_what_packer_refuses_is_said_as_it_was_given(monkeypatch, options, token, problem):
    """The option is named with the rule that it broke, and nothing else of packer's many lines."""
    require_tool("packer")
    monkeypatch.setenv("HF_TOKEN", token)
    done = CliRunner().invoke(bake.bake, ["--dry-run", *options])
    assert (done.exit_code, done.output.splitlines()[-1].startswith(f"Error: {problem}")) == (1, True)
    assert "checked by" not in done.output


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (
            "1,,ui,say,==> amazon-ebs.worker: Prevalidating any provided VPC information",
            "say",
            "Prevalidating any provided VPC information",
        ),
        ("1,,ui,error,==> amazon-ebs.worker: no%!(PACKER_COMMA) no", "error", "no, no"),
        ("1,amazon-ebs.worker,artifact,0,id,eu-west-1:ami-1", "", ""),
        ("nonsense", "", ""),
    ],
)
def test_what_packer_says_is_read(line, kind, text):
    """A line for people gives its kind and its text; all others give nothing."""
    assert packer_process.said(line + "\n") == (kind, text)


def test_the_image_is_that_of_the_last_run(tmp_path):
    """Packer adds to its manifest: what an earlier run made is not taken for this one's."""
    builds = [{"packer_run_uuid": uuid, "artifact_id": f"eu-west-1:ami-{uuid}"} for uuid in ("1", "3", "2")]
    (tmp_path / "manifest.json").write_text(json.dumps({"builds": builds, "last_run_uuid": "3"}))
    assert bake._artifact(tmp_path) == "ami-3"


def test_a_script_is_a_step_of_its_own():
    """The step is named after the script; a line that begins nothing is no step."""
    assert packer_process.step_of("Provisioning with shell script: /tmp/parts/provisioners/clean-up.sh") == "clean-up"
    assert packer_process.step_of("Provisioning with shell script: /tmp/packer-shell123") is None
