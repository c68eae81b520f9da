"""Draw a record's rows as a picture: bars of medians, with a line from the shortest to the longest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS, OTHERS, FLOOR = "#0b6e4f", "#9fb1bc", "#e0a458"


@dataclass(frozen=True, slots=True)
class Chart:
    """Which rows are drawn: a panel for each value of one label, a bar for each of another, others held fixed."""

    title: str
    panel: str
    bar: str
    fixed: tuple[tuple[str, str], ...]


CHARTS = {
    "loading": Chart(
        "seconds until a model that can generate stands, whisper large-v3-turbo's shape, float16",
        panel="cache",
        bar="way",
        fixed=(("shape", "turbo"),),
    )
}


def draw(record: dict[str, Any], path: Path) -> None:
    """Write a record's picture as SVG, the same bytes for the same record."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": record["name"], "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    chart = CHARTS[record["name"]]
    rows = [row for row in record["rows"] if _drawn(row, chart)]
    if not rows:
        message = f"the record {record['name']} has no rows with {dict(chart.fixed)}: nothing to draw"
        raise ValueError(message)
    panels = list(dict.fromkeys(row["labels"][chart.panel] for row in rows))
    tallest = max(sum(row["labels"][chart.panel] == panel for row in rows) for panel in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(9, 0.8 + 0.26 * tallest), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        _panel(axis, [row for row in rows if row["labels"][chart.panel] == panel], chart)
        axis.set_title(panel, loc="left", fontweight="bold")
    figure.suptitle(chart.title, x=0.01, ha="left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def _drawn(row: dict[str, Any], chart: Chart) -> bool:
    held = all(row["labels"].get(label) == value for label, value in chart.fixed)
    return held and bool(row["seconds"]) and "start" not in row["labels"][chart.bar]


def _panel(axis: Any, rows: list[dict[str, Any]], chart: Chart) -> None:
    names = [row["labels"][chart.bar] for row in rows]
    medians = [row["median"] for row in rows]
    reach = [
        [row["median"] - min(row["seconds"]) for row in rows],
        [max(row["seconds"]) - row["median"] for row in rows],
    ]
    axis.barh(names, medians, color=[_color(name) for name in names], xerr=reach, error_kw={"lw": 0.8, "alpha": 0.6})
    for place, median in enumerate(medians):
        axis.annotate(f" {median:.2f}", (max(rows[place]["seconds"]), place), va="center", fontsize=8)
    axis.invert_yaxis()
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
    axis.margins(x=0.18)
    axis.set_xlim(left=0)


def _color(name: str) -> str:
    return OURS if name.startswith("ours") else FLOOR if name.endswith("floor") else OTHERS
