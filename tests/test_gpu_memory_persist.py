"""Tests of run_transcription.gpu_memory_persist and of the header of its states."""

import json
import random
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_whisper
import torch
from click.testing import CliRunner
from safetensors import safe_open

from run_transcription import gpu_memory_persist as persist
from run_transcription.engines import assemble, model_folder
from run_transcription.engines.state_header import ALIGNMENT, read_header
from run_transcription.errors import TranscriptionError, Unavailable
from run_transcription.records import ModelSpec


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


def test_the_generation_config_comes_along(source, made):
    """Languages, tasks and timestamps survive, even with transformers' mark that it came from a model's config."""
    model = persist.load_state(made, None, "cpu")
    said = json.loads((source.path / "generation_config.json").read_text())
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


def test_a_short_file_is_found(state):
    """A file cut anywhere, header or data, is damaged and is not loaded."""
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    for length in [0, 4, 8, 100, *random.Random(5).sample(range(len(whole)), 10), len(whole) - 1]:  # noqa: S311
        path.write_bytes(whole[:length])
        with pytest.raises(TranscriptionError, match="is damaged"):
            persist.load_state(state, None, "cpu")


def test_a_flipped_bit_is_found(state):
    """One wrong bit anywhere in header or data is found before a tensor is used."""
    path = state / persist.STATE_FILE
    whole = path.read_bytes()
    start = read_header(path).data_start
    chance = random.Random(6)  # noqa: S311
    places = [*chance.sample(range(start), 30), *chance.sample(range(start, len(whole)), 30)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(TranscriptionError, match="is damaged"):
            persist.load_state(state, None, "cpu")


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


def test_a_save_replaces_the_old_state(source, state):
    """Preloading again, in another dtype, gives the new state under the same name."""
    persist.preload_gpu_model(source, state, "float32")
    assert persist.read_fingerprint(state).dtype == "float32"
    assert persist.load_state(state, None, "cpu").dtype == torch.float32
    assert [path.name for path in state.parent.iterdir()] == [state.name]


def test_data_longer_than_a_chunk(tmp_path, source, monkeypatch):
    """Each piece of the data has its own checksum, the last and shorter one included."""
    monkeypatch.setattr(persist, "CHUNK", 1 << 10)
    monkeypatch.setattr("run_transcription.engines.state_header.CHUNK", 1 << 10)
    header = persist.preload_gpu_model(source, tmp_path / "tiny", "bfloat16")
    assert len(header.checksums) == -(-header.size // (1 << 10))
    assert len(set(header.checksums)) > 10
    assert persist.load_state(tmp_path / "tiny", None, "cpu").dtype == torch.bfloat16


def test_preload_reports(source, tmp_path, monkeypatch):
    """The script makes the state in TRANSCRIBE_HOME in float16, verifies it and says so."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path))
    done = CliRunner().invoke(persist.main, ["--model", str(source.path)])
    assert done.exit_code == 0, done.output
    assert "verified" in done.stdout
    assert persist.read_fingerprint(tmp_path / "gpu_state" / "tiny").dtype == "float16"


def test_nothing_is_pickled(made):
    """No file of a state is a pickle or a zip of pickles."""
    starts = {path.name: path.read_bytes()[:2] for path in made.iterdir()}
    assert not [name for name, start in starts.items() if start in (b"PK", b"\x80\x02", b"\x80\x04")]
    assert np.frombuffer((made / persist.STATE_FILE).read_bytes()[:8], "<u8")[0] < 10**6
