"""Draw PyTorch's time over ConvSmith's on the core suite, layer by layer, from a benchmark record.

python benchmarks/plot_ratios.py [record.json] [-o docs/images/ratios.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window, no display

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from convsmith.bench import record
from convsmith.bench.record import Record, Row

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "h200.json"
PICTURE = ROOT / "docs" / "images" / "ratios.png"

TITLES = {
    "forward": "Forward",
    "grad_input": "Gradient of the input",
    "grad_weight": "Gradient of the weight",
}
CLASSES = {"tf32": ("TF32 class", "#76b7b2"), "float32": ("float32 class", "#4e79a7")}
BAR_WIDTH = 0.4
PALE = 0.35


def main() -> None:
    """Draw the picture that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("record", type=Path, nargs="?", default=RECORD)
    parser.add_argument("-o", "--output", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw(record.load(options.record), options.output)
    print(f"drew {options.output}")


def draw(measured: Record, output: Path) -> None:
    """A panel for each direction: bars against PyTorch NCHW, marks against channels last."""
    rows = [row for row in measured["rows"] if is_drawn(row)]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, panels = plt.subplots(len(TITLES), 1, figsize=(11, 9), sharex=True, sharey=True)
    for axes, (direction, title) in zip(panels, TITLES.items(), strict=True):
        draw_panel(axes, [row for row in rows if row["direction"] == direction], layers)
        axes.set_title(title, loc="left", fontsize=10)
    figure.legend(handles=legend_handles(), loc="lower center", fontsize=8, ncols=4)
    panels[1].set_ylabel("PyTorch's time / ConvSmith's (more is faster)")
    panels[-1].set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    panels[-1].margins(x=0.01)
    figure.suptitle(
        "{gpu}, torch {torch}, float32 tensors in NCHW, {date}".format_map(measured),
        fontsize=11,
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def is_drawn(row: Row) -> bool:
    """Whether the picture has a place for ``row``: a right one of core, float32 in NCHW."""
    kind = (row["suite"], row["layout"])
    return kind == ("core", "nchw") and row["precision"] in CLASSES and "ratio" in row


def draw_panel(axes: Axes, rows: list[Row], layers: list[str]) -> None:
    """The bars of one direction, up or down from 1."""
    axes.set_yscale("log")
    for place, (precision, (_, colour)) in enumerate(CLASSES.items()):
        for row in rows:
            if row["precision"] != precision:
                continue
            x = layers.index(row["layer"]) + (place - 0.5) * BAR_WIDTH
            alpha = PALE if row["kernel"] == "torch" else 1.0
            axes.bar(x, row["ratio"] - 1, BAR_WIDTH, bottom=1, color=colour, alpha=alpha)
            against_channels_last = row["torch_channels_last_ms"] / row["ms"]
            axes.plot(x, against_channels_last, "_", color="black", markersize=6)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", linewidth=0.3)


def legend_handles() -> list[Artist]:
    """What the bars and marks stand for."""
    return [
        *(Patch(color=colour, label=label) for label, colour in CLASSES.values()),
        Patch(color="grey", alpha=PALE, label="PyTorch's own convolution runs"),
        Line2D([], [], color="black", marker="_", linestyle="", label="against channels last"),
    ]


if __name__ == "__main__":
    main()
