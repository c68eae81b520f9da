"""The table of docs/sizing.md: what a million recordings take, by speeds that were measured or are an example."""

from __future__ import annotations

import json
from pathlib import Path

RECORDINGS, MINUTES = 1_000_000, 5
WORKERS, BUSY = 20, 0.9
EXAMPLES = (50, 100, 300, 1000)  # hours of sound in each hour of the model: inputs, not facts
PRICES = (0.5, 1.0)  # dollars for an hour of an instance: inputs, not facts
MEASURED = ("quality", "conversation", "ours")  # a record, and labels of its row


def table(results: Path) -> str:
    """Return the table, with the measured speed first."""
    head = ["RTFx", "where from", "instance hours", f"time with {WORKERS}", *(f"at ${price:.2f}" for price in PRICES)]
    rows = [_row(*measured(results)), ["not measured", "a GPU", *[""] * (2 + len(PRICES))]]
    rows += [_row(float(rate), "example") for rate in EXAMPLES]
    lines = [head, ["---:", "---", *["---:"] * (2 + len(PRICES))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def measured(results: Path) -> tuple[float, str]:
    """Return a speed that a record holds, and where it is from."""
    name, recording, system = MEASURED
    record = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
    wanted = {"recording": recording, "system": system}
    (row,) = [row for row in record["rows"] if row["labels"] == wanted]
    machine = record["machine"]
    where = f"`{record['command']}`, {recording}: the demo model on {machine['cores']} cores of {machine['cpu']}"
    return float(row["more"]["rtfx"]), where


def hours(rate: float) -> float:
    """Return the instance hours that all recordings take at a speed."""
    return RECORDINGS * MINUTES / 60 / (rate * BUSY)


def _row(rate: float, where: str) -> list[str]:
    needed = hours(rate)
    costs = [f"${needed * price:,.0f}" for price in PRICES]
    return [f"{rate:g}", where, f"{needed:,.0f}", f"{needed / WORKERS:.1f} h", *costs]
