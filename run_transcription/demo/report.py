"""What the demo prints: each transcript, how right it is, where its files lie, and where the time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from run_transcription.demo.score import word_errors, words
from run_transcription.records import Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

STAGES = ("decode", "features", "encode", "generate", "upload", "wall")


@dataclass(frozen=True, slots=True)
class Finding:
    """One recording's transcript beside its reference."""

    name: str
    text: str
    duration: float
    language: str | None
    errors: int  # words replaced, lost or invented; a failed recording has lost them all
    reference_words: int
    timing: Timing
    addresses: tuple[str, ...]
    loaded: str
    failure: str | None = None


def finding(name: str, reference: str, document: dict[str, Any], address: str) -> Finding:
    """Compare a result's json with the reference."""
    wanted, text, error = words(reference), document["text"] or "", document["error"]
    errors = word_errors(wanted, words(text))
    return Finding(
        name,
        text.strip(),
        document["duration"] or 0.0,
        document["language"],
        max(errors, 1) if error else errors,
        len(wanted),
        Timing(**{stage: document["timing"][stage] for stage in STAGES}),
        (address, *(file["address"] for file in document["files"].values())),
        f"{document['model']['id']} loaded by {document['load']['strategy']} in {document['load']['seconds']:.2f} s",
        f"{error['code']}: {error['message']}" if error else None,
    )


def show(findings: Sequence[Finding], seconds: float) -> None:
    """Print all findings to standard output."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for found in findings:
        console.print(f"\n[bold]{escape(found.name)}[/bold]  {found.duration:.1f} s, {found.language or 'no language'}")
        console.print(found.failure or found.text, markup=False)
        rate = 100 * found.errors / max(found.reference_words, 1)
        style = "red" if found.errors else "green"
        console.print(
            f"[{style}]word error rate {rate:.2f} %[/{style}] ({found.errors} of {found.reference_words} words)"
        )
        for address in found.addresses:
            console.print(f"  {address}", markup=False, style="dim", soft_wrap=True)
    console.print()
    console.print(_table(findings))
    right = sum(not found.errors for found in findings)
    loaded = escape(findings[0].loaded)
    console.print(
        f"{right} of {len(findings)} transcripts equal their reference; {loaded}; {seconds:.1f} s in all",
        soft_wrap=True,
    )


def _table(findings: Sequence[Finding]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("seconds", box=None, padding=(0, 1, 0, 0))
    for column in ("audio", *STAGES, "RTFx"):
        table.add_column(column, justify="right")
    for found in findings:
        table.add_row(escape(found.name), *_numbers(found.duration, found.timing))
    total = sum((found.timing for found in findings), Timing())
    table.add_row("all", *_numbers(sum(found.duration for found in findings), total), style="bold")
    return table


def _numbers(duration: float, timing: Timing) -> list[str]:
    stages = [f"{getattr(timing, stage):.2f}" for stage in STAGES]
    return [f"{duration:.1f}", *stages, f"{duration / timing.wall:.1f}" if timing.wall else "-"]
