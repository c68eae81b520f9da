"""Tests of run_transcription.optimized_loader and of finding a model's folder."""

import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import fake_hub
import numpy as np
import pytest
import tiny_whisper
import torch
from click.testing import CliRunner
from fakes import tone

from run_transcription import gpu_memory_persist, optimized_loader
from run_transcription.engines import golden, model_folder
from run_transcription.errors import ModelNotLoaded, TranscriptionError
from run_transcription.fast_transcribe import transcribe
from run_transcription.optimized_loader import STRATEGIES, Strategy, load, resolve
from run_transcription.records import Decoding, ModelSpec, Skipped
from run_transcription.timeline import Timeline

HUB_ID = "example/whisper-tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a checkpoint with random weights."""
    return tiny_whisper.make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test here may ask the network, whatever the machine has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def spec(folder, tmp_path):
    """Name the checkpoint, with a home of its own and nothing left to `auto`."""
    return ModelSpec(str(folder), device="cpu", dtype="float32", home=tmp_path / "home")


@pytest.fixture
def copy(folder, tmp_path):
    """Copy the checkpoint, for a test to damage."""
    return Path(shutil.copytree(folder, tmp_path / "tiny"))


def rows(handle):
    """Decode half a second of noise."""
    rng = np.random.default_rng(0)
    return handle.engine.transcribe([rng.standard_normal(9000).astype(np.float32)], Decoding()).rows


def tokens(handle):
    """Return what was decoded, without sums: their last bit may depend on the address at which weights lie."""
    return [(row.tokens, row.language) for row in rows(handle)]


def preload(spec, dtype="float32"):
    """Make the state of a model where the loader looks for it."""
    source = resolve(spec)
    gpu_memory_persist.preload_gpu_model(source, model_folder.state_folder(spec), dtype)


def in_cache(folder, cache, commit="0123456789abcdef0123456789abcdef01234567"):
    """Put a checkpoint into a cache of Hugging Face's layout, as a download does."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return commit


def test_the_state_wins_where_there_is_one(spec):
    """A valid state is loaded first; nothing is skipped, and the handle says so."""
    preload(spec)
    handle = load(spec)
    assert handle.load.strategy == "gpu_state"
    assert handle.load.skipped == ()
    assert handle.load.seconds > 0
    facts = handle.engine.facts
    assert (facts.id, facts.device, facts.dtype, facts.attention) == ("tiny", "cpu", "float32", "sdpa")
    assert facts.revision == resolve(spec).revision


def test_all_strategies_give_the_same_rows(spec):
    """State, mapped weights and transformers' own loading decode alike."""
    preload(spec)
    handles = [load(spec, (strategy,)) for strategy in STRATEGIES]
    assert [handle.load.strategy for handle in handles] == ["gpu_state", "mmap", "standard"]
    assert tokens(handles[0]) == tokens(handles[1]) == tokens(handles[2])


def test_a_fallback_is_kept_and_logged(spec, caplog):
    """Without a state the weights are mapped; what was skipped, and why, is on the handle and in the log."""
    with caplog.at_level(logging.INFO):
        handle = load(spec)
    assert handle.load.strategy == "mmap"
    (skip,) = handle.load.skipped
    assert skip.strategy == "gpu_state"
    assert skip.reason.startswith("no state in ")
    assert f"gpu_state does not apply: {skip.reason}" in caplog.text


def test_a_damaged_state_is_passed_over_with_a_warning(spec, caplog):
    """Damage is not the same as absence: it is a warning, and the next strategy gives the same rows."""
    preload(spec)
    expected = tokens(load(spec))
    path = model_folder.state_folder(spec) / gpu_memory_persist.STATE_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    caplog.clear()
    handle = load(spec)
    assert handle.load.strategy == "mmap"
    assert "is damaged after byte" in handle.load.skipped[0].reason
    assert [record.levelname for record in caplog.records if "gpu_state" in record.message] == ["WARNING"]
    assert tokens(handle) == expected


def test_a_state_of_other_content_is_passed_over(copy, tmp_path):
    """When a folder gets other weights, its old state is not used."""
    spec = ModelSpec(str(copy), device="cpu", dtype="float32", home=tmp_path / "home")
    preload(spec)
    shutil.rmtree(copy)
    tiny_whisper.make(copy, seed=5)
    handle = load(spec)
    assert handle.load.strategy == "mmap"
    assert "another revision" in handle.load.skipped[0].reason


def test_the_state_says_the_dtype_unless_one_is_asked_for(folder, tmp_path):
    """With --dtype auto the state's dtype is taken; a state of another dtype than the wanted one is passed over."""
    home = tmp_path / "home"
    preload(ModelSpec(str(folder), home=home), "float16")
    auto = load(ModelSpec(str(folder), device="cpu", home=home))
    assert (auto.load.strategy, auto.engine.facts.dtype) == ("gpu_state", "float16")
    asked = load(ModelSpec(str(folder), device="cpu", dtype="float32", home=home))
    assert (asked.load.strategy, asked.engine.facts.dtype) == ("mmap", "float32")
    assert "another dtype: float16 instead of float32" in asked.load.skipped[0].reason


def test_mapped_weights_are_not_copied(spec, folder):
    """The second strategy leaves the weights where they are: in the mapped file."""
    model = load(spec, STRATEGIES[1:2]).engine._model
    weight = model.model.encoder.layers[0].fc1.weight
    ranges = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder / "model") in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in ranges]
    assert any(start <= weight.data_ptr() < end for start, end in spans)


def test_every_parameter_is_real_and_tied(spec):
    """Nothing stays on the meta device, and the output projection is the embedding."""
    preload(spec)
    for strategy in STRATEGIES:
        model = load(spec, (strategy,)).engine._model
        assert not [name for name, value in model.named_parameters() if value.is_meta]
        assert model.proj_out.weight is model.model.decoder.embed_tokens.weight
        assert not model.training


def test_imports_are_not_counted(folder, tmp_path):
    """In a fresh process the seconds of a strategy are its own, not those of importing torch and transformers."""
    program = (
        "import sys, pathlib\n"
        "from run_transcription.optimized_loader import load, ModelSpec, Strategy\n"
        "loaded = lambda _: print('transformers.models.whisper.modeling_whisper' in sys.modules)\n"
        "try: load(ModelSpec(sys.argv[1], home=pathlib.Path(sys.argv[1])), (Strategy('look', loaded),))\n"
        "except Exception: pass\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program, folder], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "True"


def test_auto_dtype_on_a_cpu(folder, tmp_path, monkeypatch):
    """Without a GPU, auto is bfloat16 where the processor multiplies it natively, else float32."""
    spec = ModelSpec(str(folder), device="cpu", home=tmp_path)
    for able, dtype in [({"amx_bf16": True}, "bfloat16"), ({"avx512_bf16": True}, "bfloat16"), ({}, "float32")]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert load(spec).engine.facts.dtype == dtype


def test_weights_in_several_files(copy, spec, tmp_path):
    """A checkpoint in shards loads like one in a single file."""
    from transformers import WhisperForConditionalGeneration

    expected = tokens(load(spec))
    model = WhisperForConditionalGeneration.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="40KB")
    assert (copy / "model.safetensors.index.json").exists()
    shards = ModelSpec(str(copy), device="cpu", dtype="float32", home=tmp_path / "home")
    preload(shards)
    assert [tokens(load(shards, (strategy,))) for strategy in STRATEGIES] == [expected] * 3


def test_a_config_saved_from_the_model_keeps_its_languages(copy, tmp_path):
    """The mark `_from_model_config` doesn't make it forget what only the generation config has."""
    path = copy / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_from_model_config": True}))
    spec = ModelSpec(str(copy), device="cpu", dtype="float32", home=tmp_path)
    for strategy in STRATEGIES[1:]:
        assert "<|de|>" in load(spec, (strategy,)).engine._model.generation_config.lang_to_id


def test_a_checkpoint_without_generation_config(copy, tmp_path):
    """The oldest checkpoints have no generation config at all: what is needed comes from config and vocabulary."""
    (copy / "generation_config.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"max_length": 40, "suppress_tokens": [1]}))
    spec = ModelSpec(str(copy), device="cpu", dtype="float32", home=tmp_path)
    found = [tokens(load(spec, (strategy,))) for strategy in STRATEGIES[1:]]
    assert found[0] == found[1]
    assert found[0][0][0][0] >= 256 + 11  # a timestamp, as asked for


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file(copy, missing):
    """One line names the folder and what it lacks."""
    (copy / missing).unlink()
    with pytest.raises(ModelNotLoaded, match=f"{copy} is not a Whisper model.* it has no {missing}"):
        load(ModelSpec(str(copy)))


def damage_weights(folder):
    """Put something else in their place."""
    (folder / "model.safetensors").write_bytes(b"not weights at all")


def other_shapes(folder):
    """Let the config say another width."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"encoder_ffn_dim": 16', '"encoder_ffn_dim": 32'))


def more_layers(folder):
    """Let the config want a layer that has no weights."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"decoder_layers": 1', '"decoder_layers": 2'))


def fewer_layers(folder):
    """Let the config have no place for some weights."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"decoder_layers": 1', '"decoder_layers": 0'))


def another_model(folder):
    """Let the config be that of another kind of model."""
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"model_type": "whisper"', '"model_type": "bert"'))


def broken_config(folder):
    """Leave half a config."""
    (folder / "config.json").write_text("{")


def broken_tokenizer(folder):
    """Leave a tokenizer without a vocabulary."""
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_weights, "mmap, standard: .*header"),
        (other_shapes, r"do not fit its config.json: \S+ of shape \[16.*\] instead of \["),
        (more_layers, r"do not fit its config.json: no model.decoder.layers.1.* and \d+ more"),
        (fewer_layers, "too many and"),
        (another_model, "config.json says 'bert'"),
        (broken_config, "config.json is not JSON"),
        (broken_tokenizer, r"tiny/tokenizer.json is not a tokenizer: \S"),
    ],
)
def test_a_folder_that_does_not_fit(copy, tmp_path, caplog, damage, says):
    """One line names every strategy and its reason, without a traceback: no model is made of weights that don't fit."""
    damage(copy)
    with pytest.raises(ModelNotLoaded, match=says) as caught:
        load(ModelSpec(str(copy), device="cpu", home=tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("index", ["{}", "{", "[]", '{"weight_map": null}', '{"weight_map": {"a": 1}}', None])
def test_an_index_of_weights_that_is_none(copy, index):
    """Where the list of a checkpoint's shards can't be read, one line names it."""
    (copy / "model.safetensors").unlink()
    path = copy / "model.safetensors.index.json"
    path.mkdir() if index is None else path.write_text(index)
    with pytest.raises(ModelNotLoaded, match=f"{path} is not an index of weights") as caught:
        resolve(ModelSpec(str(copy)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_cannot_be_read(copy, monkeypatch):
    """A file that this user may not read, or that the disk can't give, is one line with its name."""
    read = Path.open

    def forbid(path, *arguments, **options):
        if path.name == "model.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(ModelNotLoaded, match=r"tiny/model.safetensors of --model .* can't be read: Permission denied"):
        resolve(ModelSpec(str(copy)))


@pytest.mark.parametrize("model", ["demo", "folder"])
def test_a_folder_has_no_revisions(folder, model):
    """--revision with a folder would be ignored: it is refused in one line."""
    with pytest.raises(ModelNotLoaded, match=f"--revision main: --model {'demo' if model == 'demo' else folder} is a"):
        resolve(ModelSpec("demo" if model == "demo" else str(folder), revision="main"))


def test_no_gpu_is_said(spec):
    """--device cuda on a machine without one is one line with the way out."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ModelNotLoaded, match="sees no GPU here; use --device cpu"):
        load(ModelSpec(spec.model, device="cuda", home=spec.home))
    with pytest.raises(ModelNotLoaded, match="use --attention sdpa"):
        load(ModelSpec(spec.model, attention="flash_attention_2", home=spec.home))


def test_a_strategy_may_raise_anything(spec, caplog):
    """An unexpected error of one strategy is logged and kept, and the next one is tried."""

    def fails(_request):
        msg = "out of\nluck"
        raise RuntimeError(msg)

    handle = load(spec, (Strategy("lucky", fails), *STRATEGIES[1:]))
    assert handle.load.strategy == "mmap"
    assert handle.load.skipped == (Skipped("lucky", "out of luck"),)
    assert "lucky failed: out of luck" in caplog.text
    assert "raise RuntimeError(msg)" in caplog.text


def test_a_known_error_is_one_line(spec, caplog):
    """An error that says what is wrong needs no traceback."""

    def fails(_request):
        msg = "the state is damaged"
        raise TranscriptionError(msg)

    load(spec, (Strategy("state", fails), *STRATEGIES[1:]))
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.getMessage() == "state failed: the state is damaged"
    assert not warning.exc_info


def test_a_model_that_failed_is_not_kept(spec, monkeypatch):
    """A model that was loaded and then would not do has left memory when the next strategy begins."""
    models, left = [], []

    def fails(request):
        engine = STRATEGIES[1].load(request)
        models.append(weakref.ref(engine._model))
        raise RuntimeError(str(engine.facts))

    def looks(request):
        left.extend(model() for model in models)
        return STRATEGIES[1].load(request)

    monkeypatch.setattr(optimized_loader.logger, "disabled", True)  # pytest would keep the traceback
    assert load(spec, (Strategy("fails", fails), Strategy("looks", looks))).load.strategy == "looks"
    assert left == [None]


def test_the_demo_model_lies_in_the_package(folder, tmp_path, monkeypatch):
    """`demo` is a folder of the package, and a model named like it where the program is run doesn't matter."""
    shutil.copytree(folder, tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    found = resolve(ModelSpec("demo"))
    assert (found.id, found.path) == ("demo", Path(optimized_loader.__file__).parent / "demo" / "model")
    assert resolve(ModelSpec("./demo")).path == Path("demo")


def test_a_model_in_the_image_comes_before_the_cache_of_the_user(folder, tmp_path, monkeypatch):
    """<home>/models is looked at first, then Hugging Face's cache; the revision is the commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    theirs = in_cache(folder, tmp_path / "hub", commit="f" * 40)
    spec = ModelSpec(HUB_ID, device="cpu", dtype="float32", home=tmp_path / "home")
    assert resolve(spec).revision == theirs
    ours = in_cache(folder, tmp_path / "home" / "models")
    assert resolve(spec) == model_folder.ModelFolder(HUB_ID, resolve(spec).path, ours)
    assert load(spec).engine.facts.id == HUB_ID


def test_a_half_finished_download_does_not_count(folder, tmp_path, monkeypatch):
    """A cached snapshot without its weights is as good as none."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = in_cache(folder, tmp_path / "hub")
    next((tmp_path / "hub").rglob(f"{commit}/model.safetensors")).unlink()
    with pytest.raises(ModelNotLoaded, match="is not on this machine"):
        resolve(ModelSpec(HUB_ID, home=tmp_path / "home"))


def test_a_state_alone_is_enough(folder, tmp_path, monkeypatch):
    """Where the image has only the state, it loads without the checkpoint and without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = in_cache(folder, tmp_path / "hub")
    spec = ModelSpec(HUB_ID, device="cpu", home=tmp_path / "home")
    preload(spec)
    shutil.rmtree(tmp_path / "hub")
    facts = load(spec).engine.facts
    assert (facts.id, facts.revision) == (HUB_ID, commit)
    with pytest.raises(ModelNotLoaded, match="is not on this machine"):
        load(ModelSpec(HUB_ID, revision="e" * 40, device="cpu", home=tmp_path / "home"))
    path = model_folder.state_folder(spec) / gpu_memory_persist.STATE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelNotLoaded, match="gpu_state: .*is damaged.*; mmap, standard: .*is not on this machine"):
        load(spec)


def test_a_gpu_that_cannot_be_used(spec, monkeypatch):
    """What CUDA says when it does not start is one line."""

    def refuse(*_shape, **_options):
        message = "CUDA error: all CUDA-capable devices are busy\nCompile with TORCH_USE_CUDA_DSA"
        raise RuntimeError(message)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(ModelNotLoaded, match="GPU can't be used: CUDA error: all CUDA-capable devices are busy; look"):
        load(replace(spec, device="auto"))


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere/at/all"])
def test_a_folder_that_is_not_there(name):
    """A path that doesn't exist is not taken for a Hugging Face id."""
    with pytest.raises(ModelNotLoaded, match=f"--model {name}: no such folder"):
        resolve(ModelSpec(name))


def test_a_name_that_is_nothing(tmp_path):
    """What can't be a Hugging Face id either is said with an example of one."""
    with pytest.raises(ModelNotLoaded, match="neither a folder here nor a Hugging Face id"):
        resolve(ModelSpec("my model!", home=tmp_path))


@pytest.fixture
def online(tmp_path, monkeypatch):
    """Let programs started here look for Hugging Face at an address, with empty caches."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setenv("TRANSCRIBE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return lambda endpoint: monkeypatch.setenv("HF_ENDPOINT", endpoint)


@pytest.mark.parametrize("listens", [True, False])
def test_no_network_is_said_soon(tmp_path, online, listens):
    """No model, no network: the command says so in one message with the three ways out, within the probe's limit.

    Even where the network swallows all; and before anything large is imported, as that takes longer than the probe.
    """
    assert model_folder.REACH_SECONDS <= 1.0
    tone(tmp_path / "a.wav", 0.1)
    program = (
        "import atexit, sys, time\n"
        "from run_transcription import __main__\n"
        "large = ('torch', 'transformers', 'huggingface_hub.file_download', 'huggingface_hub.hf_api')\n"
        "atexit.register(lambda: print([name for name in large if name in sys.modules]))\n"
        "__main__.main(['transcribe', 'a.wav', '--model', 'example/whisper-tiny'])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        if not listens:
            silent.close()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60
        )
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert "example/whisper-tiny is not on this machine" in message
    assert all(way in message for way in ("--model demo", "--model FOLDER", "a network"))
    assert done.stdout.strip() == "[]"


def fetched():
    """Ask for the model of the hub in a program of its own; its standard output is the folder, or the one error."""
    program = (
        "import logging, sys\n"
        "from run_transcription import errors, records\n"
        "from run_transcription.engines import model_folder\n"
        "logging.basicConfig(format='%(message)s')\n"
        "logging.getLogger('run_transcription').setLevel(logging.INFO)\n"
        f"try: print(model_folder.resolve(records.ModelSpec({HUB_ID!r})).path)\n"
        "except errors.ModelNotLoaded as error: print(error)\n"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


@pytest.fixture
def hub(copy, online):
    """Serve the checkpoint, among files in other forms, as Hugging Face does."""
    for name in ("README.md", "pytorch_model.bin", "flax_model.msgpack", "model.fp32-00001-of-00002.safetensors"):
        (copy / name).write_bytes(b"x" * 999_999)
    with fake_hub.served(copy) as hub:
        online(hub.endpoint)
        yield hub


def test_a_model_is_fetched_once(copy, hub):
    """What is needed is fetched, with its size in the log and a progress bar; the next time no network is needed."""
    done = fetched()
    path = Path(done.stdout.strip())
    needed = {file.name for file in copy.iterdir() if file.suffix == ".json"} | {"model.safetensors"}
    assert {file.name for file in path.iterdir()} == needed == set(hub.sent)
    assert all((path / name).read_bytes() == (copy / name).read_bytes() for name in needed)
    size = sum((copy / name).stat().st_size for name in needed)
    assert f"fetching {HUB_ID} from Hugging Face: {size / 1e6:.1f} MB\n" in done.stderr
    assert "100%" in done.stderr
    hub.broken = True
    again = fetched()
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_a_network_that_breaks_off_is_one_line(copy, hub):
    """When a download breaks off in the middle, one line says so; the next one fetches what was lacking."""
    hub.cut = "model.safetensors"
    (line,) = fetched().stdout.splitlines()
    assert line.startswith(f"the model {HUB_ID} could not be fetched: ")
    hub.broken, hub.cut = False, None
    path = Path(fetched().stdout.strip())
    assert (path / "model.safetensors").read_bytes() == (copy / "model.safetensors").read_bytes()


def test_a_model_that_hugging_face_has_not_is_one_line(hub):
    """An id that is not there is named in one line."""
    hub.folder = hub.folder.parent / "nowhere"
    (line,) = fetched().stdout.splitlines()
    assert line.startswith(f"the model {HUB_ID} could not be fetched: ")


def test_no_strategy_writes_to_standard_error(spec, capfd):
    """No progress bar and no warning: standard error is for log lines."""
    for strategy in STRATEGIES[1:]:
        load(spec, (strategy,))
    assert capfd.readouterr().err == ""


def test_a_state_is_read_before_torch_is_imported(spec):
    """In a fresh process the readers of a valid state are at work when the import of torch begins."""
    preload(spec)
    program = (
        "import sys, threading, pathlib\n"
        "from run_transcription import optimized_loader as loader\n"
        "def look(*_):\n"
        "    readers = [t for t in threading.enumerate() if t.name.startswith('byte-mover')]\n"
        "    print(len(readers) > 0, sorted({'torch', 'numpy', 'transformers', 'boto3', 'av'} & sys.modules.keys()))\n"
        "    sys.exit()\n"
        "loader._import_libraries = look\n"
        "loader.load(loader.ModelSpec(sys.argv[1], device='cpu', home=pathlib.Path(sys.argv[2])))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program, spec.model, spec.home],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout.strip() == "True []", done.stderr


def test_a_valid_state_needs_no_network_and_no_checkpoint_read(spec, monkeypatch):
    """With a valid state nothing connects anywhere, and an unchanged checkpoint is not read to be known again."""
    preload(spec)

    def fails(*_arguments):
        msg = "this must not happen"
        raise AssertionError(msg)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", fails)
    monkeypatch.setattr("xxhash.xxh3_128", fails)
    assert load(spec).load.strategy == "gpu_state"


def test_a_touched_checkpoint_is_read_again(copy, tmp_path):
    """Other times, the same content: the state still fits. Other content, even of the same age: it does not."""
    spec = ModelSpec(str(copy), device="cpu", dtype="float32", home=tmp_path / "home")
    preload(spec)
    weights = copy / "model.safetensors"
    os.utime(weights)
    assert load(spec).load.strategy == "gpu_state"
    before, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "another revision" in load(spec).load.skipped[0].reason


def test_the_timeline_has_all_stages(spec):
    """Each stage up to a model that can generate is there, on the clock of the process, and none ends in the future."""
    preload(spec)
    timeline = Timeline()
    load(spec, timeline=timeline)
    names = [stage.name for stage in timeline.stages]
    assert set(names) >= {"import torch", "context", "import transformers", "wait for bytes", "copy", "assign"}
    now = Timeline()
    now.mark("now")
    assert all(0 < stage.start <= stage.start + stage.seconds <= now.stages[0].start for stage in timeline.stages)


def test_transcribe_prints_the_timeline(spec, monkeypatch):
    """--timeline says on standard error, stage by stage, when the process could do what; first things first."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(spec.home))
    preload(spec)
    arguments = [str(golden.CLIP), "--model", spec.model, "--device", "cpu", "--timeline"]
    done = CliRunner().invoke(transcribe, arguments)
    assert done.exit_code == 0, done.output
    table = done.stderr[done.stderr.index("stage  ") :].splitlines()[1:]
    names = [line[:22].strip() for line in table]
    order = ["import torch", "wait for bytes", "assign", "can generate", "first call", "first transcript"]
    assert [name for name in names if name in order] == order
    assert "stage  " not in CliRunner().invoke(transcribe, arguments[:-1]).stderr


def test_the_process_started_before_this_test(tmp_path):
    """The clock of the timeline begins with the process: a child that sleeps before it looks is as old as its sleep."""
    program = (
        "import time; time.sleep(0.5)\n"
        "from run_transcription.timeline import process_start; print(time.perf_counter() - process_start())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert 0.49 < float(done.stdout) < time.monotonic() - began + 0.02


def run_script(monkeypatch, home, *arguments):
    """Run `optimized_loader.py` with a home of its own."""
    monkeypatch.setenv("TRANSCRIBE_HOME", str(home))
    return CliRunner().invoke(optimized_loader.main, ["test", *map(str, arguments)])


def test_the_script_tries_all_strategies(folder, tmp_path, monkeypatch):
    """`optimized_loader.py test` prints a line for each strategy, and what keeps one from working."""
    done = run_script(monkeypatch, tmp_path, "--model", folder, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["strategy", "gpu_state", "mmap", "standard"]
    assert "no state in" in lines[1]
    assert all("float32 on" in line for line in lines[2:])
    assert lines[2].endswith("with nothing to compare it with")
    assert lines[3].endswith("golden result right")


def test_the_script_compares_all_in_the_dtype_of_the_state(spec, monkeypatch):
    """With a state and --dtype auto all strategies run in its dtype, and each gives its golden result."""
    preload(spec, "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})  # without a state: bfloat16
    arguments = ("--model", spec.model, "--device", "cpu", "--json", "--require", "gpu_state")
    done = run_script(monkeypatch, spec.home, *arguments)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [row["facts"]["dtype"] for row in said["strategies"]] == ["float32"] * 3
    assert [row["verdict"] for row in said["strategies"]] == ["golden result right"] * 3
    assert len({tuple(row["heard"]["tokens"]) for row in said["strategies"]}) == 1
    state = model_folder.state_folder(spec) / gpu_memory_persist.STATE_FILE
    weights = Path(spec.model) / "model.safetensors"
    assert [row["floor"]["size"] for row in said["strategies"]] == [
        file.stat().st_size for file in (state, weights, weights)
    ]
    assert all(row["seconds"] > 0 for row in said["strategies"])


def test_the_script_fails_where_another_strategy_wins(spec, monkeypatch):
    """--require gpu_state without a state: the exit status is 1, and one line says who won and why."""
    done = run_script(monkeypatch, spec.home, "--model", spec.model, "--require", "gpu_state")
    assert done.exit_code == 1
    assert "mmap wins, not gpu_state: " in done.stderr
    assert "no state in" in done.stderr


def test_the_script_fails_where_the_golden_result_differs(spec, monkeypatch):
    """A state whose clip gave another token when it was made does not pass."""
    heard = golden.hear
    with monkeypatch.context() as patch:
        patch.setattr(golden, "hear", lambda engine: replace(heard(engine), tokens=(*heard(engine).tokens, 7)))
        preload(spec)
    done = run_script(monkeypatch, spec.home, "--model", spec.model, "--device", "cpu")
    assert done.exit_code == 1
    assert "hears something else: token" in done.stderr
    assert "nothing instead of 7" in done.stderr


def test_the_script_goes_on_where_a_model_cannot_decode(spec, monkeypatch):
    """A strategy whose model gives NaN is named, and the others are tried all the same."""
    preload(spec)
    begun = gpu_memory_persist.finish

    def poisoned(*arguments):
        model = begun(*arguments)
        model.model.encoder.layer_norm.bias.data = torch.full_like(model.model.encoder.layer_norm.bias, torch.nan)
        return model

    monkeypatch.setattr(gpu_memory_persist, "finish", poisoned)
    done = run_script(monkeypatch, spec.home, "--model", spec.model, "--device", "cpu", "--dtype", "float32")
    assert done.exit_code == 1
    assert "gpu_state can't decode: " in done.stderr
    assert "NaN" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["strategy", "gpu_state", "mmap", "standard"]
    assert "standard" not in done.stderr


def test_the_script_fails_where_no_strategy_works(copy, tmp_path, monkeypatch):
    """Its exit status is 1, for scripts that ask."""
    damage_weights(copy)
    done = run_script(monkeypatch, tmp_path, "--model", copy)
    assert done.exit_code == 1
    assert "no strategy can load the model" in done.stderr
