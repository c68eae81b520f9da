"""Render the tables and pictures of OPTIMIZATION_SUMMARY.md and docs/sizing.md from the records in benchmarks/results.

usage: python benchmarks/summary.py [--check]       (--check changes nothing, and fails where a document is behind)
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import charts
import sizing

ROOT = Path(__file__).parents[1]
DOCUMENT, SIZING = ROOT / "OPTIMIZATION_SUMMARY.md", ROOT / "docs" / "sizing.md"
RESULTS = ROOT / "benchmarks" / "results"
_PLACE = re.compile(r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)


def main() -> None:
    """Write the documents and their pictures anew, or compare the documents."""
    check = "--check" in sys.argv[1:]
    for document in (DOCUMENT, SIZING):
        then = document.read_text(encoding="utf-8")
        now = rendered(then, RESULTS)
        if check and now != then:
            sys.exit(f"{document.name} is behind the records: make summary")
        document.write_text(now, encoding="utf-8")
    for name in charts.CHARTS:
        if not check and (path := RESULTS / f"{name}.json").exists():
            charts.draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".svg"))


def rendered(document: str, results: Path) -> str:
    """Return a document in which each place `<!-- NAME: begin -->` … `end` holds the tables of NAME's record."""
    return _PLACE.sub(lambda place: place[1] + _content(place["name"], results) + place[3], document)


def _content(name: str, results: Path) -> str:
    return sizing.table(results) if name == "sizing" else _section(results / f"{name}.json")


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
