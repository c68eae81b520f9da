from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from faults.proxy import proxied

from run_transcription import downloads, storage
from run_transcription.demo.emulator import environment
from run_transcription.errors import Gone, Rejected
from run_transcription.failures import Kind, kind_of
from run_transcription.storage import Stored

STRANGE = "x/a b+c%20&é\n\"'🎧#?.wav"


def test_a_local_recording_is_lent_as_it_is():
    """A path needs no copy, and is not looked at here."""
    with downloads.local_copy("some/where.mp3") as path:
        assert path == Path("some/where.mp3")


def test_a_recording_on_s3_is_a_private_copy_that_goes_away(stack):
    """Nobody else on the machine may read it, and nothing is left afterwards."""
    address = f"s3://{stack.bucket}/{STRANGE}"
    storage.store(address, b"sound")
    with downloads.local_copy(address) as path:
        assert path.read_bytes() == b"sound"
        assert path.name == "recording.wav"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()


def test_the_version_that_was_announced_is_read(stack):
    """A newer upload does not change a job that was made for an older one."""
    address = f"s3://{stack.bucket}/a.wav"
    storage.store(address, b"first")
    version = storage.version(address)
    storage.store(address, b"second")
    with downloads.local_copy(address, version) as path:
        assert path.read_bytes() == b"first"


@pytest.mark.parametrize("version", [None, "00000000-0000-0000-0000-000000000000"])
def test_an_absent_recording_is_rejected(stack, version):
    """It would not come back by trying again; nothing temporary is left."""
    with (
        pytest.raises(Rejected, match=r"uploads/gone\.wav") as caught,
        downloads.local_copy(f"s3://{stack.bucket}/uploads/gone.wav", version),
    ):
        pass
    assert caught.value.code == "not_found"


def test_a_replaced_recording_is_gone(stack, tmp_path):
    """Without versions the eTag is the content's name: another content must not be stored under the old identity."""
    address = f"s3://{stack.bucket}/a.wav"
    storage.store(address, b"first")
    etag = storage.look(address).etag
    assert downloads.fetch(Stored(address, etag=etag), tmp_path / "one").read_bytes() == b"first"
    storage.store(address, b"second")
    with pytest.raises(Gone):
        downloads.fetch(Stored(address, etag=etag), tmp_path / "two")


@pytest.mark.parametrize("named", ["by nothing", "by its version", "by its etag"])
def test_a_download_that_breaks_off_goes_on(stack, tmp_path, named):
    """Cut answers and slow-downs cost time, not bytes; also where an S3 sends all again instead of the rest."""
    address = f"s3://{stack.bucket}/a.wav"
    content = os.urandom(500_000)
    storage.store(address, content)
    there = storage.look(address)
    wanted = {
        "by nothing": Stored(address),
        "by its version": Stored(address, there.version_id),
        "by its etag": Stored(address, etag=there.etag),
    }[named]
    with proxied(urlsplit(os.environ["AWS_ENDPOINT_URL"]).port, 0.0, 1) as proxy:
        cuts = ["answer cut", "answer cut"]
        proxy.fault = lambda: cuts.pop(0) if cuts else None
        with environment(os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.server_port}"}):
            path = downloads.fetch(wanted, tmp_path / "one")
    assert path.read_bytes() == content
    assert not cuts


def test_a_full_disk_is_this_machines_fault(stack, tmp_path, monkeypatch):
    """Another machine can do the job: the message goes back, and the recording is not declared bad."""
    address = f"s3://{stack.bucket}/a.wav"
    storage.store(address, b"sound")
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "recording.wav").symlink_to(full)
    with pytest.raises(Exception, match="No space left") as caught:
        downloads.fetch(Stored(address), tmp_path)
    assert kind_of(caught.value) is Kind.ENVIRONMENT


def test_a_recording_larger_than_any_disk_is_its_own_fault(stack, tmp_path, monkeypatch):
    """It would fill every worker's disk in turn, and take them all out of service."""
    address = f"s3://{stack.bucket}/a.wav"
    storage.store(address, b"sound")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(4, 0, 4))
    with pytest.raises(Rejected, match="has 5 bytes, and the whole disk 4") as caught:
        downloads.fetch(Stored(address), tmp_path)
    assert caught.value.code == "too_large"
