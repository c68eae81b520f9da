"""A machine to bake on: its own sshd in an isolated root, which is this machine's root with all changes kept apart.

The root is an overlay in a mount namespace: what runs there sees this machine's programs, and writes into a folder of
the test. Its processes end with it. Needs root, `unshare`, sshd, and a file system that takes overlays.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import require_tool

ROOT = Path(__file__).parents[1]
TORCH = "/opt/torch-of-this-machine"  # where the isolated root shows it
TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - the machine's own
SETUP = r"""
set -eu
below=/
if [ -n "$IMAGE" ]; then # an overlay over an overlay: layers of one file system may not lie inside one another
  mount -t overlay overlay -o "lowerdir=/,upperdir=$IMAGE/upper,workdir=$IMAGE/work" "$IMAGE/root"
  below=$IMAGE/root
fi
mount -t overlay overlay -o "lowerdir=$below,upperdir=$BASE/upper,workdir=$BASE/work" "$BASE/root"
cd "$BASE/root"
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755 tmpfs run
mkdir -p run/sshd run/builder ".$TORCH"
for each in $BOUND; do
  [ -d "$each" ] && mkdir -p ".$TORCH/${each##*/}" || touch ".$TORCH/${each##*/}"
  mount --bind "$each" ".$TORCH/${each##*/}"
done
cp "$BASE"/ssh/* run/builder
exec chroot . /usr/sbin/sshd -D -e -f /run/builder/sshd_config
"""
CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey /run/builder/host_key
AuthorizedKeysFile /run/builder/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
Subsystem sftp internal-sftp
SetEnv {environment}
"""


@dataclass
class Machine:
    """A running machine: its folder, its port, and the process that holds its namespace."""

    base: Path
    port: int
    process: subprocess.Popen

    @property
    def key(self) -> Path:
        """The key that it lets in."""
        return self.base / "ssh" / "user_key"

    @property
    def upper(self) -> Path:
        """What differs from the machine outside."""
        return self.base / "upper"

    def variables(self) -> list[str]:
        """Return the options of `bake` that lead here."""
        values = {
            "ssh_host": "127.0.0.1",
            "ssh_port": self.port,
            "ssh_username": "root",
            "ssh_private_key_file": self.key,
            "torch_source": TORCH,
            "log_agent": "",  # only AWS's base image has it
        }
        return [word for name, value in values.items() for word in ("--var", f"{name}={value}")]

    def ssh(self, command: str) -> list[str]:
        """Return the command line that runs a shell command in the isolated root."""
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
        flags = [word for option in options for word in ("-o", option)]
        return ["ssh", *flags, "-i", str(self.key), "-p", str(self.port), "root@127.0.0.1", command]

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the isolated root, to its end."""
        return subprocess.run(self.ssh(command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@contextmanager
def machine(base: Path, image: Path | None = None, **environment: str):
    """Run a machine while the block runs, its root being this machine's, or that of one that has ended: its image."""
    require_machine()
    for name in ("upper", "work", "root", "ssh"):
        (base / name).mkdir(parents=True)
    for path in hidden(base) if image is None else ():
        hide(path, base / "upper")
    port = free_port()
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(base / "ssh" / name)]
        subprocess.run(command, check=True)
    settings = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}
    settings |= pip_settings() | environment
    pairs = " ".join(f'"{name}={value}"' for name, value in settings.items())
    (base / "ssh" / "sshd_config").write_text(CONFIG.format(port=port, environment=pairs))
    inside = {
        "BASE": str(base),
        "IMAGE": str(image or ""),
        "BOUND": " ".join(torch_parts()),
        "TORCH": TORCH,
        "PATH": os.environ["PATH"],
    }
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--propagation", "private"]
    with (base / "sshd.log").open("wb") as log:
        process = subprocess.Popen([*command, "sh", "-c", SETUP], env=inside, stdout=log, stderr=log)
    try:
        made = Machine(base, port, process)
        wait_for(made)
        yield made
    finally:
        process.kill()
        process.wait()
        subprocess.run(["chmod", "-R", "u+rwX", str(base / "work")], check=False)  # so that pytest can remove it


def require_machine() -> None:
    """Skip where such a machine can't be had, or fail under CI."""
    for name in ("unshare", "packer", "sshd", "ssh", "systemd-analyze"):
        require_tool(name)
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("a root of one's own wants root")


def wait_for(made: Machine) -> None:
    """Wait until the machine's sshd takes a command."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and made.process.poll() is None:
        if made.run("true").returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the machine does not start: {(made.base / 'sshd.log').read_text()}")


def hidden(base: Path) -> list[Path]:
    """Return what the isolated root must do without, or it might be what makes an image work: checkout and homes.

    And what lies in the folders for temporary files, which is nobody's but this machine's.
    """
    homes = [path for path in Path.home().iterdir() if path.name != ".cache"]
    return [*TEMPORARY, *(path for path in (ROOT, *homes) if not base.is_relative_to(path))]


def hide(path: Path, upper: Path) -> None:
    """Let a folder be empty in an overlay, and a file be gone: nothing of them shines through from below."""
    for each in reversed(path.parents):
        inside = upper / each.relative_to("/")
        inside.mkdir(exist_ok=True)
        shutil.copystat(each, inside)
    inside = upper / path.relative_to("/")
    if path.is_dir():
        inside.mkdir(exist_ok=True)
        shutil.copystat(path, inside)
        os.setxattr(inside, "trusted.overlay.opaque", b"y")
    else:
        os.mknod(inside, stat.S_IFCHR, os.makedev(0, 0))  # how an overlay writes that a file was removed


def pip_settings() -> dict[str, str]:
    """Return how pip finds packages here: the isolated machine finds them in the same way."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") and '"' not in value}


def torch_parts() -> list[str]:
    """Return the folders and modules of torch and of all that it requires, in this environment."""
    found: set[str] = set()
    names, seen = ["torch"], set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        found |= {str(Path(distribution.locate_file(top)).resolve()) for top in tops}
        wanted = [line for line in distribution.requires or () if "extra ==" not in line]
        names += [re.match(r"[A-Za-z0-9._-]+", line)[0] for line in wanted]
    return sorted(found)


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
