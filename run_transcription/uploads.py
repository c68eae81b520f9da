"""A recording that has arrived, before it is a job."""

from __future__ import annotations

from dataclasses import dataclass

from run_transcription.records import Given


@dataclass(frozen=True, slots=True)
class Upload:
    """A recording that has arrived, before it is a job: where it lies, and which of its contents is meant."""

    root: str  # s3://bucket, or a folder
    key: str  # its name below root
    version: str  # version id or eTag; size and modification time of a local file
    version_id: str | None = None  # set in a bucket that keeps versions
    sequencer: str | None = None
    options: Given = ()  # what is to be done in another way than the worker does

    @property
    def address(self) -> str:
        """The path or the s3:// address of the recording."""
        return f"{self.root}/{self.key}"
