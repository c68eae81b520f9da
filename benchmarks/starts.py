"""How long a process takes from its start to a model that can generate, or to its first transcript."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import common
from loaders import STATE

from run_transcription import demo, gpu_memory_persist
from run_transcription.engines import byte_mover, model_folder
from run_transcription.records import ModelSpec

RECORDING = Path(demo.__file__).parent / "recordings" / "ziffern.m4a"

# what a start can't do without, in the order of the time it takes
IMPORTS = """
from run_transcription.timeline import Timeline
import torch, run_transcription.engines.torch_engine
from transformers import WhisperForConditionalGeneration
timeline = Timeline()
timeline.mark("imports")
"""

LOADED = """
import sys, pathlib
from run_transcription import optimized_loader
from run_transcription.records import ModelSpec
from run_transcription.timeline import Timeline
timeline = Timeline()
spec = ModelSpec(sys.argv[1], device=sys.argv[2], home=pathlib.Path(sys.argv[3]))
handle = optimized_loader.load(spec, timeline=timeline)
assert handle.load.strategy == "gpu_state", handle.load
timeline.mark("can generate")
"""

TRANSCRIBED = """
from run_transcription import audio, direct_transcribe
from run_transcription.records import Decoding
with audio.open_recording(pathlib.Path(sys.argv[4])) as reader:
    found, _ = direct_transcribe.transcribe(reader.blocks(), handle.engine, Decoding())
assert found.text
timeline.mark("first transcript")
"""

SAID = """
import json
print(json.dumps({stage.name: [stage.start, stage.seconds] for stage in timeline.stages}))
"""


@dataclass(frozen=True, slots=True)
class Start:
    """A model, the home that has its state, and the recording that is transcribed, if one is."""

    model: str
    home: Path
    recording: Path | None = None

    @property
    def end(self) -> str:
        """The stage that ends the start."""
        return "first transcript" if self.recording else "can generate"


def home_of(folder: Path, home: Path) -> Path:
    """Make a home whose state of a model's folder is the one in that folder."""
    states = home / "gpu_state"
    states.mkdir(parents=True)
    (states / folder.name).symlink_to((folder / STATE).parent)
    return home


def of_demo(home: Path) -> Start:
    """Make a home with the demo model's state."""
    spec = ModelSpec("demo", home=home)
    gpu_memory_persist.preload_gpu_model(model_folder.resolve(spec), model_folder.state_folder(spec), "float32")
    return Start("demo", home, RECORDING)


def measure(label: str, start: Start, options: Namespace) -> common.Row:
    """Start a process a round, its files in the page cache; the imports alone are measured beside it."""
    labels = {"shape": label, "way": f"process start to {start.end}", "cache": "warm"}
    program = LOADED + (TRANSCRIBED if start.recording else "") + SAID
    words = [start.model, options.device, str(start.home), str(start.recording)]
    states = list(start.home.glob("gpu_state/*/state.safetensors"))
    seconds, imports, stages = [], [], []
    for _ in range(options.rounds):
        byte_mover.read_ahead(states)
        common.make_memory_ready(2 * sum(file.stat().st_size for file in states))
        said = common.child([sys.executable, "-c", program, *words])
        alone = common.child([sys.executable, "-c", IMPORTS + SAID])
        if error := said.get("error") or alone.get("error"):
            return common.row(labels, [], error)
        stages.append(said)
        seconds.append(said[start.end][0])
        imports.append(alone["imports"][0])
    return common.row(labels, seconds, imports=imports, stages=stages)


def judge(start: common.Row, load: float | None) -> common.Bar:
    """Allow the start of a process a second more than its imports or the load, whichever is longer."""
    least = [max(each, load or 0.0) for each in start.more.get("imports", [])]
    late = [mine - floor for mine, floor in zip(start.seconds, least, strict=False)]
    name = f"{start.labels['shape']} warm: {start.labels['way']}, seconds over imports or load"
    return common.at_most(name, late, 1.0)
