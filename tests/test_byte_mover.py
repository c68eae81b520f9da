"""Tests of run_transcription.engines.byte_mover, ring, golden and of the command `prefetch`."""

import ctypes
import mmap
import os
import random
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash
from click.testing import CliRunner

from run_transcription import prefetch
from run_transcription.engines import byte_mover, golden, ring
from run_transcription.engines.byte_mover import Extent, Memory, Moving, Nowhere
from run_transcription.errors import TranscriptionError
from run_transcription.records import ModelSpec

CHUNK, PIECE = 10_000, 3_000  # neither divides the other, nor the size


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Let the turns of a gigabyte take place in a hundred kilobytes."""
    monkeypatch.setattr(byte_mover, "PIECE", PIECE)
    monkeypatch.setattr(ring, "PIECE", PIECE)


@pytest.fixture
def data():
    """Make bytes without a pattern."""
    return random.Random(1).randbytes(123_457)  # noqa: S311


@pytest.fixture
def extent(data, tmp_path):
    """Write the bytes behind a header, with their checksums."""
    path = tmp_path / "data"
    path.write_bytes(b"header" + data)
    sums = [xxhash.xxh3_64_hexdigest(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK)]
    return Extent(path, 6, len(data), CHUNK, tuple(sums))


def move(extent, lanes):
    """Move an extent to its end, and leave nothing open."""
    file = os.open(extent.path, os.O_RDONLY)
    try:
        Moving(file, extent, lanes).wait()
    finally:
        os.close(file)


@pytest.mark.parametrize("threads", [1, 2, 8, 40])
def test_all_bytes_arrive_in_place(data, extent, threads):
    """However many threads there are, more than chunks even, memory holds the bytes of the extent."""
    memory = Memory(extent.size)
    move(extent, [memory] * threads)
    assert memory.block[: extent.size] == data


@pytest.mark.parametrize("threads", [1, 3])
def test_all_bytes_arrive_through_a_ring(data, extent, threads):
    """Through reused slots they arrive in the target too; with a GPU the same turns go through pinned memory."""
    target = torch.zeros(extent.size, dtype=torch.uint8)
    move(extent, ring.rings(target, threads))
    assert target.numpy().tobytes() == data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("threads", [1, 8])
def test_all_bytes_arrive_on_a_gpu(data, extent, threads):
    """Slots are not filled again before the copy out of them has ended."""
    target = torch.zeros(extent.size, dtype=torch.uint8, device="cuda")
    move(extent, ring.rings(target, threads))
    assert target.cpu().numpy().tobytes() == data


@pytest.mark.parametrize("place", [0, 9_999, 10_000, 123_456])
def test_a_wrong_byte_is_found(data, extent, place):
    """The first and the last byte of a chunk count; the message says where the chunk begins in the file."""
    damaged = bytearray(data)
    damaged[place] ^= 1
    extent.path.write_bytes(b"header" + damaged)
    with pytest.raises(TranscriptionError, match=f"is damaged after byte {6 + place // CHUNK * CHUNK}$"):
        move(extent, [Memory(extent.size)] * 3)
    move(replace(extent, checksums=()), [Nowhere()])  # unchecked, it is only read


def test_the_other_threads_stop_after_an_error(extent):
    """Whoever finds damage spares the others the rest of the file."""
    moved, ended = [], threading.Event()

    class Finds(Nowhere):
        def finish(self):
            ended.set()

    class Waits(Nowhere):
        def put(self, offset, length):
            moved.append(offset)
            ended.wait()

    wrong = ("0" * 16, *extent.checksums[1:])
    with pytest.raises(TranscriptionError, match="is damaged"):
        move(replace(extent, checksums=wrong), [Finds(), Waits()])
    assert len(moved) <= 1


def test_a_file_that_ends_early(extent):
    """A file that was cut meanwhile is an error that names the place."""
    os.truncate(extent.path, 50_000)
    with pytest.raises(TranscriptionError, match="ends early, at byte 50000"):
        move(replace(extent, checksums=()), [Nowhere()])


def test_a_file_that_cannot_be_read(extent, tmp_path):
    """The system's own words are in the message."""
    with pytest.raises(TranscriptionError, match="could not be read: Is a directory"):
        move(replace(extent, path=tmp_path), [Nowhere()])


def test_stopping_ends_all_threads(extent):
    """After `stop` no thread of it is left and nothing more is read; that it was not all is said."""
    file = os.open(extent.path, os.O_RDONLY)
    waiting, going = threading.Event(), threading.Event()

    moved = []

    class Slow(Nowhere):
        def put(self, offset, length):
            moved.append(offset)
            waiting.set()
            going.wait()

    moving = Moving(file, extent, [Slow()])
    waiting.wait()
    threading.Timer(0.05, going.set).start()
    moving.stop()
    os.close(file)
    assert moved == [0]
    with pytest.raises(TranscriptionError, match="was not read to its end"):
        moving.wait()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("byte-mover")]


def test_nothing_is_moved_of_an_empty_extent(tmp_path):
    """An empty file is read to its end at once."""
    (tmp_path / "empty").touch()
    assert byte_mover.read_ahead([tmp_path / "empty", tmp_path / "absent"]) == 0


def test_reading_ahead_passes_over_what_it_cannot_read(tmp_path):
    """One file that is a folder, or can't be read, does not keep the others out of the page cache."""
    (tmp_path / "state.safetensors").mkdir()
    (tmp_path / "good").write_bytes(bytes(5_000))
    assert byte_mover.read_ahead([tmp_path / "state.safetensors", tmp_path / "good"]) == 5_000


def resident(path):
    """Return how many pages of a file are in the page cache."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    seen = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        view = ctypes.c_char.from_buffer(mapped)
        ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), seen)
        del view
    return sum(byte & 1 for byte in seen), pages


def test_prefetch_fills_the_page_cache(tmp_path, monkeypatch):
    """After it, every page of the state and of its small files is in memory, and it says how much it has read."""
    monkeypatch.setattr(prefetch, "shared_objects", list)
    spec = ModelSpec("example/whisper", home=tmp_path)
    state, config = prefetch.state_files(spec)[0], prefetch.state_files(spec)[0].with_name("config.json")
    state.parent.mkdir(parents=True)
    config.write_text("{}")
    state.write_bytes(bytes(3_000_000))
    with state.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(state)[0]:
        pytest.skip("this file system keeps its files in memory")
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    done = CliRunner().invoke(prefetch.prefetch, ["--model", "example/whisper"])
    assert done.exit_code == 0, done.output
    assert "state  3.0 MB" in done.stdout
    assert resident(state)[0] == resident(state)[1]


def test_prefetch_without_a_state_is_no_error(tmp_path, monkeypatch):
    """At boot there may be no state yet: it says so and goes on."""
    monkeypatch.setattr(prefetch, "shared_objects", list)
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    done = CliRunner().invoke(prefetch.prefetch, ["--model", "example/whisper"])
    assert done.exit_code == 0, done.output
    assert f"nothing to read in {tmp_path}" in done.stdout


def test_prefetch_knows_the_libraries_of_torch():
    """Torch's own come first, the largest of them at the head."""
    found = prefetch.shared_objects()
    assert found[0].stat().st_size > 50_000_000
    assert Path(torch.__file__).parent in found[0].parents


def test_prefetch_knows_the_libraries_of_cuda(tmp_path, monkeypatch):
    """Those of the wheels that torch's CUDA build brings along come after torch's, the largest first."""
    sizes = {"torch/lib/libtorch.so": 2, "nvidia/cu13/lib/libsmall.so.13": 3, "nvidia/cudnn/lib/libcudnn.so.9": 4}
    for name, size in {**sizes, "torch/__init__.py": 0, "nvidia/cu13/include/cuda.h": 9}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    found = [file.name for file in prefetch.shared_objects()]
    assert found == ["libtorch.so", "libcudnn.so.9", "libsmall.so.13"]


def test_prefetch_imports_nothing_heavy():
    """It is done before anything heavy would be imported: standard library and click alone."""
    program = "import run_transcription.prefetch as p, sys; p.shared_objects(); print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(prefetch.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    foreign = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert foreign <= {"click", "run_transcription"} | {name for name in foreign if name.startswith("_")}


KEPT = golden.Golden("c", "a processor", "sdpa", "float16", (1, 2, 3), ("one", "two"), ((0.0, 1.0), (1.0, 2.0)))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (KEPT, None),
        (replace(KEPT, words=("one",), times=()), None),  # on one device and dtype tokens say it all
        (replace(KEPT, tokens=(1, 2, 4)), "token 2 is 4 instead of 3"),
        (replace(KEPT, tokens=(1, 2)), "token 2 is nothing instead of 3"),
        (replace(KEPT, dtype="float32", tokens=(9,), times=((0.1, 1.2), (0.9, 1.9))), None),
        (replace(KEPT, attention="eager", tokens=(9,)), None),
        (replace(KEPT, device="another", words=("one", "too")), "word 1 is 'too' instead of 'two'"),
        (replace(KEPT, device="another", times=((0.0, 1.0), (1.0, 2.3))), "times are not within 0.2 s"),
        (replace(KEPT, device="another", times=((0.0, 1.0),)), "times are not within 0.2 s"),
        (replace(KEPT, clip_sha256="d"), "different clips"),
    ],
)
def test_golden_results_are_compared(found, says):
    """On the same processor, attention and dtype every token counts; across them words, and times within 0.2 s."""
    said = golden.difference(found, KEPT)
    assert said is None if says is None else says in said
