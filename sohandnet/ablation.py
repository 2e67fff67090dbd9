"""Do unlabelled frames help? ``python -m sohandnet.ablation --config sohandnet/configs/standin.yaml --data.store DIR``.

Runs the whole pipeline for every share of labels, with and without the unlabelled frames, for every seed, and writes
``ablation.json``, ``ablation.txt`` and ``ablation.png``. At equal labels both see the same labelled frames in the same
number of steps; only the unlabelled frames differ. Combinations that are done are not run again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from shared.errors import DataError, exit_on_error
from shared.options import parse
from sohandnet.config import AblationConfig, OnOff, PipelineConfig, Recipe
from sohandnet.pipeline import METRICS, pipeline

TABLE, TEXT, PLOT = "ablation.json", "ablation.txt", "ablation.png"
KEPT = ("mean_error_mm", "baseline_mean_pose_mm", "frames", "protocol")


def combinations(options: AblationConfig) -> list[tuple[float, OnOff]]:
    """(share of labels, unlabelled frames) of the table's rows; at 100 % there are no unlabelled frames: one row."""
    return [
        (ratio, mode) for ratio in options.ratios for mode in options.modes if ratio < 1.0 or mode == options.modes[0]
    ]


def folder_name(ratio: float, mode: OnOff, seed: int) -> str:
    return f"labels{100 * ratio:g}-{'full' if ratio == 1.0 else mode}-seed{seed}"


def row_of(ratio: float, mode: OnOff, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: mean, spread (sample standard deviation) and the single errors of its seeds."""
    errors = [run["mean_error_mm"] for run in runs]
    return {
        "labels": ratio,
        "unlabelled": "none left" if ratio == 1.0 else mode,
        "mean_error_mm": statistics.mean(errors),
        "spread_mm": statistics.stdev(errors) if len(errors) > 1 else None,
        "errors_mm": errors,
        "baseline_mean_pose_mm": runs[0]["baseline_mean_pose_mm"],
        "frames": runs[0]["frames"],
        "protocol": runs[0]["protocol"],
    }


def table_text(rows: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """The table for people."""
    lines = [
        f"mean joint error in mm on {rows[0]['frames']} test frames; seeds {', '.join(map(str, seeds))}",
        rows[0]["protocol"],
        f"mean pose of the training frames: {rows[0]['baseline_mean_pose_mm']:.2f} mm",
        "",
        "labels   unlabelled   mean    spread   single runs",
    ]
    for row in rows:
        spread = "   -  " if row["spread_mm"] is None else f"{row['spread_mm']:6.2f}"
        single = " ".join(f"{error:.2f}" for error in row["errors_mm"])
        share = f"{100 * row['labels']:g} %"
        lines.append(f"{share:>6}   {row['unlabelled']:<10} {row['mean_error_mm']:6.2f}   {spread}   {single}")
    return "\n".join(lines) + "\n"


def draw_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Error over the share of labels: a line with and one without unlabelled frames, bars for the spread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from shared.safe_io import atomic_path

    figure, axes = plt.subplots(figsize=(6, 4))
    for mode, style in (("on", "o-"), ("off", "s--")):
        some = [row for row in rows if row["unlabelled"] in (mode, "none left")]
        if not any(row["unlabelled"] == mode for row in some):
            continue
        some = sorted(some, key=lambda row: row["labels"])
        axes.errorbar(
            [100 * row["labels"] for row in some],
            [row["mean_error_mm"] for row in some],
            yerr=[row["spread_mm"] or 0.0 for row in some],
            fmt=style,
            capsize=3,
            label="with unlabelled frames" if mode == "on" else "labelled frames alone",
        )
    axes.set_xlabel("labelled training frames (%)")
    axes.set_ylabel("mean joint error (mm)")
    axes.set_xlim(0, 105)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)


def ablation(options: AblationConfig) -> list[dict[str, Any]]:
    """All runs that are missing, then the table; returns its rows.

    Raises:
        DataError: options that leave nothing to compare; whatever the pipeline refuses.
    """
    from shared.safe_io import atomic_write_text

    for name in ("ratios", "seeds", "modes"):
        values = getattr(options, name)
        if not values or len(set(values)) != len(values):
            raise DataError(f"--{name} must list different values, got {values}")
    if bad := [ratio for ratio in options.ratios if not 0.0 < ratio <= 1.0]:
        raise DataError(f"--ratios must be above 0 and at most 1, got {bad[0]}")
    if options.labelled_list:
        raise DataError("--labelled_list has one set of labels, the ablation draws its own", remedy="leave it out")
    root, rows = Path(options.run), []
    shared = {item.name: getattr(options, item.name) for item in fields(Recipe)}
    for ratio, mode in combinations(options):
        runs = []
        for seed in options.seeds:
            folder = root / folder_name(ratio, mode, seed)
            print(f"--- {folder.name}", flush=True)
            changes = {"label_ratio": ratio, "unlabelled": mode, "seed": seed, "label_seed": seed}
            config = PipelineConfig(**{**shared, **changes}, run=str(folder), report=False)
            if (folder / METRICS).is_file():
                metrics = json.loads((folder / METRICS).read_text("utf-8"))
                print("finished")
            else:
                found = pipeline(config)
                assert found is not None
                metrics = found
            runs.append({key: metrics[key] for key in KEPT})
        rows.append(row_of(ratio, mode, runs))
        text = table_text(rows, options.seeds)  # after every row: a long ablation can be looked at
        atomic_write_text(root / TABLE, json.dumps({"seeds": options.seeds, "rows": rows}, indent=1) + "\n")
        atomic_write_text(root / TEXT, text)
        draw_table(rows, root / PLOT)
    print(f"\n{text}\n{root / TABLE}, {root / TEXT}, {root / PLOT}")
    return rows


def main() -> None:
    ablation(
        parse(
            AblationConfig,
            prog="python -m sohandnet.ablation",
            description="Compare shares of labels, with and without unlabelled frames.",
        ).options
    )


if __name__ == "__main__":
    exit_on_error(main)
