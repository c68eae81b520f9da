"""Render the tables and pictures of OPTIMIZATION_SUMMARY.md from the records in benchmarks/results.

usage: python benchmarks/summary.py [--check]       (--check changes nothing, and fails where the document is behind)
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import charts

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "OPTIMIZATION_SUMMARY.md"
RESULTS = ROOT / "benchmarks" / "results"
_PLACE = re.compile(r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)


def main() -> None:
    """Write the document and its pictures anew, or compare the document."""
    now, then = rendered(DOCUMENT.read_text(encoding="utf-8"), RESULTS), DOCUMENT.read_text(encoding="utf-8")
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(now, encoding="utf-8")
        for name in charts.CHARTS:
            if (path := RESULTS / f"{name}.json").exists():
                charts.draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".svg"))
    elif now != then:
        sys.exit(f"{DOCUMENT.name} is behind the records: make summary")


def rendered(document: str, results: Path) -> str:
    """Return a document in which each place `<!-- NAME: begin -->` … `end` holds the tables of NAME's record."""
    return _PLACE.sub(lambda place: place[1] + _section(results / f"{place['name']}.json") + place[3], document)


def _section(path: Path) -> str:
    if not path.exists():
        return "Not measured yet.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    drawn = f"![{path.stem}](benchmarks/results/{path.stem}.svg)" if path.stem in charts.CHARTS else ""
    parts = [_origin(record), drawn, _rows(record["rows"]), _bars(record["bars"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(record: dict[str, Any]) -> str:
    """Say by which command, on which machine and with what it was measured."""
    machine = record["machine"]
    device = machine["gpu"] or "no GPU"
    where = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, {device}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"`{record['command']}` at {record['commit']}, {machine['date']}: {where}; {versions}."


def _rows(rows: list[dict[str, Any]]) -> str:
    """Show the times of each row, or in their place the figures that were taken beside them."""
    labels, figures = list(rows[0]["labels"]), _figures(rows)
    columns = [name.replace("_", " ") for name in figures] or ["shortest", "longest"]
    lines = [[*labels, "median s", *columns], ["---"] * len(labels) + ["---:"] * (1 + len(columns))]
    for row in rows:
        seconds = row["seconds"]
        shown = [_shown(row["more"].get(name)) for name in figures]
        times = [f"{row['median']:.3f}", *(shown or [f"{min(seconds):.3f}", f"{max(seconds):.3f}"])] if seconds else []
        lines.append([*row["labels"].values(), *(times or [row["error"] or "not run", *[""] * len(columns)])])
    return _table(lines)


def _figures(rows: list[dict[str, Any]]) -> list[str]:
    """Return the names of what is a single number in some row."""
    return list(dict.fromkeys(name for row in rows for name, value in row["more"].items() if _is_number(value)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    return f"{value:g}" if _is_number(value) else ""


def _bars(bars: list[dict[str, Any]]) -> str:
    if not bars:
        return ""
    lines = [["bar", "measured", "at most", ""], ["---", "---:", "---:", "---"]]
    lines += [[bar["name"], str(bar["value"]), f"{bar['limit']:.3g}", bar["verdict"]] for bar in bars]
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
