"""Open a state, and bring its bytes to the device: the first half without torch, so that it runs during its import."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from run_transcription.engines import golden
from run_transcription.engines.byte_mover import THREADS, Extent, Lane, Memory, Moving, Nowhere
from run_transcription.engines.fingerprint import Fingerprint
from run_transcription.engines.state_header import Entry, Header, header_of
from run_transcription.errors import Unavailable

if TYPE_CHECKING:
    import io
    from types import TracebackType

    import torch

    from run_transcription.timeline import Timeline

STATE_FILE = "state.safetensors"
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # as the driver, and Windows' Linux, name them


@dataclass(frozen=True, slots=True)
class State:
    """A state whose header was found sound, and its open file: what replaces it meanwhile does not matter."""

    folder: Path
    file: io.FileIO
    header: Header
    made_from: Fingerprint

    @property
    def stamps(self) -> str:
        """Sizes and times of the files that it was made of; "" where a commit names them."""
        return self.header.metadata.get("source_stamps", "")

    def extent(self, *, checked: bool = True) -> Extent:
        """Return where the tensors' bytes lie."""
        header = self.header
        checksums = header.checksums if checked else ()
        return Extent(self.folder / STATE_FILE, header.data_start, header.size, header.chunk, checksums)

    def __enter__(self) -> Self:
        """Keep the file open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.file.close()


def open_state(folder: Path) -> State:
    """Open the state of a folder. Raises Unavailable where there is none, TranscriptionError where it is damaged."""
    path = folder / STATE_FILE
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        reason = "" if isinstance(error, FileNotFoundError) else f": {error.strerror}"
        raise Unavailable(f"no state in {folder}{reason}") from error
    with ExitStack() as undo:
        undo.enter_context(file)
        header = header_of(file, path)
        undo.pop_all()
    # an older format may lack some field
    made_from = Fingerprint(**{field.name: header.metadata.get(field.name, "") for field in fields(Fingerprint)})
    return State(folder, file, header, made_from)


def golden_of(state: State) -> golden.Golden:
    """Return what the model made of the golden clip when the state was made."""
    return golden.from_json(json.loads(state.header.metadata["golden"]))


def gpu_expected() -> bool:
    """Tell whether this machine has a GPU's device file: torch, which knows for sure, is not imported yet."""
    return any(Path(name).exists() for name in _GPU_DEVICES)


class Reading:
    """The bytes of a state on their way; a context manager that leaves neither thread nor open file.

    For a CPU they go to where they stay. For a GPU, which can't be written before torch is there, they are read into
    the page cache meanwhile, and `tensor` takes them from there.
    """

    def __init__(self, state: State, *, gpu: bool, checked: bool = True) -> None:
        """Begin to read at once."""
        self.state = state
        self._checked = checked
        self._memory = None if gpu else Memory(state.header.size)
        lanes: list[Lane] = [self._memory or Nowhere() for _ in range(THREADS)]
        extent = state.extent(checked=checked and not gpu)
        self._moving = Moving(state.file.fileno(), extent, lanes)

    def tensor(self, device: str, timeline: Timeline) -> torch.Tensor:
        """Return all data as uint8 [bytes] on a device, every checksum found right.

        Raises TranscriptionError where one is not, or the file can't be read.
        """
        import torch

        if self._memory is not None:
            with timeline.stage("wait for bytes"):
                self._moving.wait()
            with timeline.stage("copy"):
                return torch.frombuffer(self._memory.block, dtype=torch.uint8)[: self.state.header.size].to(device)
        return self._copied(torch.device(device), timeline)

    def _copied(self, device: torch.device, timeline: Timeline) -> torch.Tensor:
        import torch

        from run_transcription.engines.ring import rings

        with timeline.stage("wait for bytes"):
            self._moving.stop()  # what it has not read yet is read by those who copy
        with timeline.stage("copy"):
            data = torch.empty(self.state.header.size, dtype=torch.uint8, device=device)
            self._moving = Moving(self.state.file.fileno(), self.state.extent(checked=self._checked), rings(data))
            self._moving.wait()
        return data

    def __enter__(self) -> Self:
        """Go on reading."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the threads, then close the file."""
        self._moving.stop()
        self._memory = None  # where nobody has taken it, it is given back
        self.state.file.close()


def view(data: torch.Tensor, entry: Entry) -> torch.Tensor:
    """Return one tensor of all data, without copying."""
    import torch

    return data[entry.start : entry.end].view(getattr(torch, entry.dtype)).view(entry.shape)
