from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import user_data
import yaml
from isolated_machine import machine

from run_transcription import options, worker
from tools import require_tool

ROOT = Path(__file__).parents[1]
UNIT = "/etc/systemd/system/transcribe-worker.service"
TOPIC = "arn:aws:sns:us-east-1:000000000000:done"


def told(topic=None, attached=()):
    """Return the user data as cloud-init reads it."""
    written = user_data.text(user_data.NAMES, topic, attached)
    assert written.startswith("#cloud-config\n")
    return yaml.safe_load(written)


def commands(of):
    """Return commands as cloud-init runs them: a list is an argument list."""
    assert all(isinstance(each, list) for each in of)
    return [[str(word) for word in each] for each in of]


def test_cloud_init_knows_every_part():
    """A word that it does not know is passed over in silence."""
    found = told()
    assert found.keys() == {"bootcmd", "write_files", "runcmd"}
    for file in found["write_files"]:
        assert file.keys() <= {"path", "content", "append", "owner", "permissions"}
        assert file.keys() >= {"path", "content"}


def test_the_shell_lines_are_in_order(tmp_path):
    """Shellcheck finds nothing in what is given to a shell."""
    scripts = [each[2] for each in commands(told()["bootcmd"] + told()["runcmd"]) if each[:2] == ["sh", "-c"]]
    assert scripts
    for number, script in enumerate(scripts):
        file = tmp_path / f"{number}.sh"
        file.write_text(f"#!/bin/sh\n{script}\n")
        done = subprocess.run([require_tool("shellcheck"), file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("topic", "attached"), [(None, ()), (TOPIC, ("calls", "talks"))])
def test_the_worker_is_told_what_it_needs_and_knows_all_of_it(topic, attached, monkeypatch):
    """Each variable is an option of the worker; topic and attached buckets are among them where there are any."""
    environment = user_data.environment(told(topic, attached)["write_files"][0]["content"])
    assert environment.pop("AWS_DEFAULT_REGION") == "us-east-1"
    assert environment.keys() <= {options.environment_variable(option) for option in worker.worker.params}
    assert environment.get("TRANSCRIBE_NOTIFY_TOPIC") == topic
    monkeypatch.setattr("os.environ", environment)
    read = worker.worker.make_context("worker", []).params
    assert read["queue_url"] == user_data.NAMES["LiveQueue"]
    assert read["backfill_url"] == user_data.NAMES["BackfillQueue"]
    assert read["buckets"] == ("some-bucket", *attached)
    assert read["output"] == "s3://some-bucket"
    assert read["idle_seconds"] == 600


@pytest.fixture
def instance(tmp_path):
    """Run a machine with the files of the image on it; systemctl and the agent write down what they are asked for."""
    with machine(tmp_path / "instance") as made:
        files = subprocess.run(["tar", "-C", ROOT / "packer/rootfs", "-c", "."], capture_output=True, check=True).stdout
        subprocess.run([*made.ssh("")[:-1], "tar -C / --no-same-owner -x"], input=files, check=True)
        agent = "/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl"
        note = "printf '#!/bin/sh\\necho \"$0 $*\" >>/tmp/asked\\n' >{0} && chmod +x {0}"
        done = made.run(
            "useradd --system transcribe && mkdir -p /opt/transcribe/venv/bin /opt/aws/amazon-cloudwatch-agent/bin "
            "/opt/aws/amazon-cloudwatch-agent/etc && "
            + " && ".join(
                note.format(path)
                for path in ("/usr/local/sbin/systemctl", agent, "/opt/transcribe/venv/bin/run-transcription")
            )
        )
        assert done.returncode == 0, done.stderr
        yield made


def boot(made):
    """Do what cloud-init does at the first boot, in its order."""
    found = told(TOPIC)
    for command in commands(found["bootcmd"]):
        assert made.run(shlex.join(command)).returncode == 0
    for file in found["write_files"]:
        path, content = shlex.quote(file["path"]), shlex.quote(file["content"])
        redirect = ">>" if file.get("append") else ">"
        lines = [f"mkdir -p $(dirname {path})", f"printf %s {content} {redirect}{path}"]
        lines += [f"chown {file['owner']} {path}"] if "owner" in file else []
        lines += [f"chmod {file.get('permissions', '0644')} {path}"]
        assert made.run(" && ".join(lines)).returncode == 0
    for command in commands(found["runcmd"]):
        assert made.run(shlex.join(command)).returncode == 0


def test_a_first_boot_leaves_a_worker_that_starts_and_logs_where_the_agent_looks(instance):
    """The unit is valid with what user data adds, its environment is whole, and log file and log group fit together."""
    boot(instance)
    checked = instance.run(f"systemd-analyze verify --man=no --root=/ {UNIT}")
    assert (checked.returncode, [line for line in checked.stderr.splitlines() if "transcribe" in line]) == (0, [])
    said = instance.run(f"cat {UNIT}.d/log.conf").stdout
    file = re.search(r"^StandardOutput=append:(.+)$", said, re.MULTILINE)[1]
    assert instance.run(f"test -d $(dirname {file})").returncode == 0
    agent = json.loads(instance.run("cat /opt/aws/amazon-cloudwatch-agent/etc/transcribe.json").stdout)
    (shipped,) = agent["logs"]["logs_collected"]["files"]["collect_list"]
    assert (shipped["file_path"], shipped["log_group_name"]) == (file, "/transcribe/some")
    assert instance.run("stat -c %U:%G:%a /etc/transcribe.env").stdout == "root:transcribe:640\n"
    whole = user_data.environment(instance.run("cat /etc/transcribe.env").stdout)
    assert whole["TRANSCRIBE_HOME"] == "/opt/transcribe"  # the image's own lines are still there
    assert whole["TRANSCRIBE_QUEUE_URL"] == user_data.NAMES["LiveQueue"]
    asked = instance.run("cat /tmp/asked").stdout
    assert "systemctl daemon-reload" in asked
    assert "systemctl start --no-block transcribe-worker.service" in asked
    assert "-c file:/opt/aws/amazon-cloudwatch-agent/etc/transcribe.json" in asked
