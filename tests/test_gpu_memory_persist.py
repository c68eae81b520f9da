"""Tests of run_transcription.gpu_memory_persist and of the header of its states."""

import errno
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_whisper
import torch
from click.testing import CliRunner
from safetensors import safe_open

from run_transcription import gpu_memory_persist as persist
from run_transcription.engines import assemble, golden, hardware, model_folder, state_writer
from run_transcription.engines.state_header import ALIGNMENT, read_header
from run_transcription.errors import TranscriptionError, Unavailable
from run_transcription.records import ModelSpec
from run_transcription.timeline import Timeline


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Make a checkpoint with random weights."""
    return model_folder.resolve(ModelSpec(str(tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny"))))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """Make a state that tests only read."""
    folder = tmp_path_factory.mktemp("states") / "tiny"
    persist.preload_gpu_model(source, folder, "float16")
    return folder


@pytest.fixture
def state(made, tmp_path):
    """Make a copy of the state that a test may damage."""
    return shutil.copytree(made, tmp_path / "tiny")


def parameters(model):
    """Return all parameters by name."""
    return {name: value.detach() for name, value in model.named_parameters()}


def test_a_state_gives_the_same_model_back(source, made):
    """Every parameter is, bit for bit, the checkpoint's in the state's dtype."""
    loaded = parameters(persist.load_state(made, persist.fingerprint(source, "float16"), "cpu"))
    original = parameters(assemble.mapped_model(source.path, "float16", "sdpa"))
    assert loaded.keys() == original.keys()
    assert all(value.dtype == torch.float16 and value.equal(original[name]) for name, value in loaded.items())


def test_parameters_are_views_of_one_allocation(made):
    """There is one copy of the weights in memory, and tied ones are one tensor."""
    model = persist.load_state(made, None, "cpu")
    assert len({value.untyped_storage().data_ptr() for value in model.parameters()}) == 1
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_the_generation_config_comes_along(source, tmp_path):
    """Languages, tasks and timestamps survive, even with transformers' mark that it came from a model's config."""
    marked = Path(shutil.copytree(source.path, tmp_path / "marked"))
    path = marked / "generation_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"_from_model_config": True}))
    persist.preload_gpu_model(model_folder.resolve(ModelSpec(str(marked))), tmp_path / "state")
    model = persist.load_state(tmp_path / "state", None, "cpu")
    assert not model.generation_config._from_model_config
    assert model.generation_config.lang_to_id == said["lang_to_id"]
    assert model.generation_config.no_timestamps_token_id == said["no_timestamps_token_id"]


def test_the_file_is_plain_safetensors(made):
    """The official reader takes it; data begin at a page, in the order of use, tied tensors once."""
    header = read_header(made / persist.STATE_FILE)
    with safe_open(made / persist.STATE_FILE, framework="pt") as official:
        assert set(official.keys()) == {entry.name for entry in header.tensors}
        assert official.metadata()["model_id"] == "tiny"
    assert header.data_start % ALIGNMENT == 0
    names = [entry.name for entry in header.tensors]
    assert "proj_out.weight" not in names
    assert names[0] == "model.encoder.conv1.weight"
    assert names.index("model.encoder.layer_norm.bias") < names.index("model.decoder.embed_tokens.weight")
    assert [entry.start for entry in header.tensors[1:]] == [entry.end for entry in header.tensors[:-1]]


@pytest.mark.parametrize(
    "field", ["format_version", "model_id", "revision", "content_sha256", "config_sha256", "dtype"]
)
def test_each_field_of_the_fingerprint_counts(source, made, field):
    """A state that was made from something else is not loaded, and the field is named."""
    wanted = replace(persist.fingerprint(source, "float16"), **{field: "other"})
    with pytest.raises(Unavailable, match=f"another {field}: .* instead of other"):
        persist.load_state(made, wanted, "cpu")


def test_the_content_counts_and_not_the_name(source, tmp_path):
    """Another checkpoint of the same name and shapes has another fingerprint."""
    other = model_folder.resolve(ModelSpec(str(tiny_whisper.make(tmp_path / "tiny", seed=1))))
    ours, theirs = persist.fingerprint(source, "float16"), persist.fingerprint(other, "float16")
    assert (ours.model_id, ours.config_sha256) == (theirs.model_id, theirs.config_sha256)
    assert ours.content_sha256 != theirs.content_sha256
    assert ours.revision != theirs.revision


def test_no_state_is_said(tmp_path):
    """Where nothing was preloaded, the strategy does not apply."""
    with pytest.raises(Unavailable, match="no state in"):
        persist.load_state(tmp_path, None, "cpu")


def read(state):
    """Read all of a state, header and data, up to where tensors would be made of it."""
    with persist.begin(state, None, gpu=False) as reading:
        return reading.tensor("cpu", Timeline())


def test_a_short_file_is_found(state):
    """A file cut anywhere, header or data, is damaged and is not loaded."""
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    for length in [0, 4, 8, 100, *random.Random(5).sample(range(len(whole)), 20), len(whole) - 1]:  # noqa: S311
        path.write_bytes(whole[:length])
        with pytest.raises(TranscriptionError, match="is damaged"):
            persist.load_state(state, None, "cpu")


def test_a_flipped_bit_is_found(state):
    """One wrong bit anywhere in header or data is found before a tensor is made."""
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    start = read_header(path).data_start
    chance = random.Random(6)  # noqa: S311
    for place in [*chance.sample(range(start), 100), *chance.sample(range(start, len(whole)), 100)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(TranscriptionError, match="is damaged"):
            read(state)
    path.write_bytes(whole)
    assert len(read(state)) == len(whole) - start


def test_a_file_cut_while_it_is_read_is_found(state):
    """What ends early after its header was checked is an error, not zeros in the place of weights."""
    opened = persist.open_state(state)
    os.truncate(state / persist.STATE_FILE, opened.header.data_start + opened.header.size // 2)
    with persist.Reading(opened, gpu=False) as reading, pytest.raises(TranscriptionError, match="ends early"):
        reading.tensor("cpu", Timeline())


def test_bytes_behind_the_data_are_found(state):
    """A file that is too long is damaged too."""
    with (state / persist.STATE_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(TranscriptionError, match="is damaged"):
        persist.load_state(state, None, "cpu")


def test_another_tokenizer_beside_it_is_found(state):
    """The small files belong to the state: another vocabulary would write other words."""
    with (state / "tokenizer.json").open("a") as file:
        file.write("\n")
    with pytest.raises(TranscriptionError, match="small files"):
        persist.load_state(state, None, "cpu")


def test_a_failed_save_leaves_the_old_state(source, state):
    """When the disk takes no more, the old state stays whole, nothing is left beside it, and one line says why."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    try:
        with pytest.raises(TranscriptionError, match=f"{state} could not be written: .*too large"):
            persist.preload_gpu_model(source, state, "float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert persist.load_state(state, None, "cpu").dtype == torch.float16
    assert [path.name for path in state.parent.iterdir()] == [state.name]


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_failed_exchange_puts_the_old_state_back(source, state, monkeypatch, error):
    """When the new state can't take its name, or is interrupted at it, the old one has its name again, in whole."""
    rename = Path.rename

    def fails(path, target):
        if path.name == "new":
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((TranscriptionError, KeyboardInterrupt)):
        persist.preload_gpu_model(source, state, "float32")
    assert persist.load_state(state, None, "cpu").dtype == torch.float16
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_reads_may_be_short(made, monkeypatch):
    """A system that gives fewer bytes than were asked for is no damage: the rest is asked for again."""
    opened, preadv = Path.open, os.preadv
    calls = []

    class Slow(io.FileIO):
        def read(self, size=-1):
            return super().read(max(1, size // 2) if size > 0 else size)

    def opens(path, *arguments, **options):
        return Slow(path) if path.name == persist.STATE_FILE else opened(path, *arguments, **options)

    def short(file, views, offset):
        calls.append(offset)
        return preadv(file, [views[0][: max(1, len(views[0]) // 2)]], offset)

    monkeypatch.setattr(Path, "open", opens)
    monkeypatch.setattr(os, "preadv", short)
    slow = persist.load_state(made, None, "cpu")
    monkeypatch.undo()
    whole = parameters(persist.load_state(made, None, "cpu"))
    assert len(calls) > 2
    assert all(value.equal(whole[name]) for name, value in parameters(slow).items())


def test_a_save_replaces_the_old_state(source, state):
    """Preloading again, in another dtype, gives the new state under the same name."""
    persist.preload_gpu_model(source, state, "float32")
    assert persist.read_fingerprint(state).dtype == "float32"
    assert persist.load_state(state, None, "cpu").dtype == torch.float32
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_data_longer_than_a_chunk(tmp_path, source, monkeypatch):
    """Each piece of the data has its own checksum, the last and shorter one included."""
    monkeypatch.setattr("run_transcription.engines.state_writer.CHUNK", 1 << 10)
    monkeypatch.setattr("run_transcription.engines.state_header.CHUNK", 1 << 10)
    header = persist.preload_gpu_model(source, tmp_path / "tiny", "bfloat16")
    assert len(header.checksums) == -(-header.size // (1 << 10))
    assert len(set(header.checksums)) > 10
    monkeypatch.undo()  # a state says its own chunk size
    loaded = parameters(persist.load_state(tmp_path / "tiny", None, "cpu"))
    original = parameters(assemble.mapped_model(source.path, "bfloat16", "sdpa"))
    assert all(value.equal(original[name]) for name, value in loaded.items())


def open_files():
    """Return what this process has open, by number."""
    links = Path("/proc/self/fd").iterdir()
    return {link.name: link.readlink() for link in links if link.is_symlink() and "/proc/" not in str(link.readlink())}


@contextmanager
def nothing_left():
    """Fail where the block leaves a thread or an open file."""
    files, threads = open_files(), threading.enumerate()
    yield
    assert open_files() == files
    assert threading.enumerate() == threads


def test_no_file_and_no_thread_is_left(state, tmp_path):
    """Whether a state was loaded, was damaged in its data or its header, or was not there: all is closed again."""
    persist.load_state(state, None, "cpu")
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    with nothing_left():
        persist.load_state(state, None, "cpu")
    for place in (100, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with nothing_left(), pytest.raises(TranscriptionError):
            persist.load_state(state, None, "cpu")
    with nothing_left(), pytest.raises(Unavailable):
        persist.load_state(tmp_path / "none", None, "cpu")


def test_two_loaders_at_once(source, made):
    """Loaders don't disturb one another: each gets the checkpoint's weights, and torch's default dtype stays."""
    original = parameters(assemble.mapped_model(source.path, "float16", "sdpa"))
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(persist.load_state, made, None, "cpu") for _ in range(6)]:
            assert all(value.equal(original[name]) for name, value in parameters(future.result()).items())
    assert torch.get_default_dtype() == torch.float32


def test_a_state_that_is_replaced_while_it_is_read(source, state, tmp_path):
    """Who has begun to read the old state gets the old one in whole."""
    original = parameters(persist.load_state(state, None, "cpu"))
    other = model_folder.resolve(ModelSpec(str(tiny_whisper.make(tmp_path / "other" / "tiny", seed=1))))
    with persist.begin(state, None, gpu=False) as reading:
        persist.preload_gpu_model(other, state, "float16")
        model = persist.finish(reading, "cpu", "sdpa", Timeline())
    assert all(value.equal(original[name]) for name, value in parameters(model).items())
    now = parameters(persist.load_state(state, None, "cpu"))
    assert not all(value.equal(original[name]) for name, value in now.items())


def test_small_files_that_are_replaced_while_a_state_is_read(source, state, tmp_path):
    """Weights of the old state never meet the tokenizer of the new one."""
    other = Path(shutil.copytree(source.path, tmp_path / "other" / "tiny"))
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    with persist.begin(state, None, gpu=False) as reading:
        persist.finish(reading, "cpu", "sdpa", Timeline())
        persist.require_unchanged(reading)
        persist.preload_gpu_model(model_folder.resolve(ModelSpec(str(other))), state, "float16")
        with pytest.raises(TranscriptionError, match="was replaced while it was read"):
            persist.require_unchanged(reading)


def test_other_tensors_under_a_sound_header_are_found(source, state):
    """A state with a tensor too few, or one of another shape, is no model's, and no model is made of it."""
    made_from = persist.fingerprint(source, "float16")
    with persist.open_state(state) as opened:
        metadata = {name: opened.header.metadata[name] for name in ("generation_config", "golden")}
    tensors = state_writer.tensors_of(assemble.mapped_model(source.path, "float16", "sdpa"))
    name = "model.decoder.layer_norm.bias"
    for damaged in ({k: v for k, v in tensors.items() if k != name}, tensors | {name: tensors[name][:8].clone()}):
        state_writer.write(state / persist.STATE_FILE, damaged, {**asdict(made_from), "source_stamps": "", **metadata})
        with pytest.raises(TranscriptionError, match=f"do not fit its config.json: .*{name}"):
            persist.load_state(state, None, "cpu")


def test_the_way_to_a_gpu_gives_the_same_bytes(state):
    """Read into the page cache first and then through a ring, the bytes are the same, and damage is found too."""
    straight = read(state)
    with persist.begin(state, None, gpu=True) as reading:
        assert reading.tensor("cpu", Timeline()).equal(straight)
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with persist.begin(state, None, gpu=True) as reading, pytest.raises(TranscriptionError, match="is damaged"):
        reading.tensor("cpu", Timeline())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_state_is_loaded_to_a_gpu(source, made):
    """On a GPU every parameter is, bit for bit, the checkpoint's."""
    loaded = parameters(persist.load_state(made, persist.fingerprint(source, "float16"), "cuda"))
    original = parameters(assemble.mapped_model(source.path, "float16", "sdpa"))
    assert all(value.is_cuda and value.cpu().equal(original[name]) for name, value in loaded.items())


def test_nothing_is_held_after_damage(state):
    """The allocation of a state that was found damaged is free again before the next strategy makes its own."""
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    gc.disable()
    try:
        with persist.begin(state, None, gpu=False) as reading:
            held = weakref.ref(reading._memory)
            with pytest.raises(TranscriptionError, match="is damaged"):
                reading.tensor("cpu", Timeline())
        assert held() is None
    finally:
        gc.enable()


def killed_at(step, work):
    """Do the work in a process of its own that dies by SIGKILL where it would take the step."""
    child = os.fork()
    if child == 0:
        module, name = step
        setattr(module, name, lambda *_arguments, **_named: os.kill(os.getpid(), signal.SIGKILL))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("step", [(os, "fsync"), (shutil, "copyfile"), (Path, "rename")])
def test_a_killed_save_leaves_the_old_state(source, state, step):
    """Killed before anything has its name, a save leaves the old state; the next save clears away what it left."""
    killed_at(step, lambda: persist.preload_gpu_model(source, state, "float32"))
    assert persist.load_state(state, None, "cpu").dtype == torch.float16
    assert len(list(state.parent.iterdir())) == 2
    persist.preload_gpu_model(source, state, "float32")
    assert [path.name for path in state.parent.iterdir()] == [state.name]
    assert persist.load_state(state, None, "cpu").dtype == torch.float32


def test_a_broken_checkpoint_is_one_line(source, tmp_path, monkeypatch):
    """Weights cut in half give no state and no traceback."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path / "home"))
    broken = Path(shutil.copytree(source.path, tmp_path / "broken"))
    os.truncate(broken / "model.safetensors", (broken / "model.safetensors").stat().st_size // 2)
    done = CliRunner().invoke(persist.main, ["--model", str(broken)])
    assert done.exit_code == 1
    assert "broken can't be loaded: " in done.stderr
    assert isinstance(done.exception, SystemExit)


def test_what_is_no_state_is_not_replaced(source, made, tmp_path):
    """A file of somebody's, or a folder that is no state, is left alone and named; a link is followed."""
    precious, folder, elsewhere = tmp_path / "precious", tmp_path / "folder", tmp_path / "elsewhere"
    precious.write_text("precious")
    folder.mkdir()
    (folder / "precious").write_text("precious")
    for place in (precious, folder):
        with pytest.raises(TranscriptionError, match=f"{place} is in the way of a state, and is none"):
            persist.preload_gpu_model(source, place)
    assert precious.read_text() == (folder / "precious").read_text() == "precious"
    shutil.copytree(made, elsewhere)
    (tmp_path / "link").symlink_to(elsewhere)
    persist.preload_gpu_model(source, tmp_path / "link", "float32")
    assert (tmp_path / "link").is_symlink()
    assert persist.read_fingerprint(elsewhere).dtype == "float32"


def test_a_file_in_the_way(source, made, tmp_path):
    """Where the folder of the states is a file, saving is one line, and loading finds no state."""
    (tmp_path / "gpu_state").write_text("in the way")
    with pytest.raises(TranscriptionError, match="could not be written: .*(exists|Not a directory): .*gpu_state"):
        persist.preload_gpu_model(source, tmp_path / "gpu_state" / "tiny")
    with pytest.raises(Unavailable, match="no state in .*: Not a directory"):
        persist.load_state(tmp_path / "gpu_state" / "tiny", None, "cpu")


@contextmanager
def nobody():
    """Be a user without rights for a while, where the tests run as root."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_no_permission(source, state):
    """A folder that may not be written, and a state that may not be read, are one line each."""
    heard = golden.hear(persist._engine(persist.load_state(state, None, "cpu"), source))
    model = assemble.mapped_model(source.path, "float16", "sdpa")
    made_from = persist.fingerprint(source, "float16")
    state.parent.chmod(0o500)
    (state / persist.STATE_FILE).chmod(0)
    try:
        with nobody(), pytest.raises(TranscriptionError, match="could not be written: Permission denied"):
            persist.save_state(model, state, source, persist.metadata(made_from, heard, "{}"))
        with nobody(), pytest.raises(Unavailable, match="no state in .*: Permission denied"):
            persist.load_state(state, None, "cpu")
    finally:
        state.parent.chmod(0o700)


def test_a_small_file_that_cannot_be_read(state):
    """What lies beside a state and can't be read is one line that names it."""
    (state / "tokenizer.json").unlink()
    (state / "tokenizer.json").mkdir()
    with pytest.raises(TranscriptionError, match=r"tokenizer.json could not be read: Is a directory"):
        persist.load_state(state, None, "cpu")


def test_the_golden_clip_comes_along(source, tmp_path):
    """The state knows what the checkpoint hears in the clip, on which device and in which dtype."""
    persist.preload_gpu_model(source, tmp_path / "tiny", "float32")
    kept = persist.read_golden(tmp_path / "tiny")
    assert kept == golden.hear(persist._engine(assemble.mapped_model(source.path, "float32", "sdpa"), source))
    assert (kept.attention, kept.dtype) == ("sdpa", "float32")
    assert kept.device == hardware.name("cpu")
    assert kept.tokens


def test_preload_reports(source, tmp_path, monkeypatch):
    """The script makes the state in TRANSCRIBE_HOME in float16, verifies it and says so."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    # random weights in float16 have near-ties, which fall one way or the other by the address of the weights
    monkeypatch.setattr(golden, "difference", lambda found, kept: None if found.dtype == kept.dtype else "other dtypes")
    done = CliRunner().invoke(persist.main, ["--model", str(source.path)])
    assert done.exit_code == 0, done.output
    assert "verified" in done.stdout
    assert persist.read_fingerprint(tmp_path / "gpu_state" / "tiny").dtype == "float16"


def test_preload_fails_where_the_state_hears_something_else(source, tmp_path, monkeypatch):
    """The report ends in one line where the state, read back, does not transcribe as the model did."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    heard = iter(["first", "second"])
    hear = golden.hear
    monkeypatch.setattr(golden, "hear", lambda engine: replace(hear(engine), clip_sha256=next(heard)))
    done = CliRunner().invoke(persist.main, ["--model", str(source.path), "--dtype", "float32"])
    assert done.exit_code == 1
    assert "does not transcribe as the model does: they heard different clips" in done.stderr
    assert not (tmp_path / "gpu_state" / "tiny").exists()


def test_nothing_is_pickled(made):
    """No file of a state is a pickle or a zip of pickles."""
    starts = {path.name: path.read_bytes()[:2] for path in made.iterdir()}
    assert not [name for name, start in starts.items() if start in (b"PK", b"\x80\x02", b"\x80\x04")]
    assert np.frombuffer((made / persist.STATE_FILE).read_bytes()[:8], "<u8")[0] < 10**6
