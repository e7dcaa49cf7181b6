"""The picture of one run: its loss and how much of it was clipped."""

import json
from pathlib import Path

import numpy as np

from train.records import read_lines


def draw_curves(workdir: Path) -> Path:
    """Draws ``curves.png`` from the run's ``metrics.jsonl`` and ``config.json``.

    Args:
      workdir: The run's folder.

    Returns:
      The path of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_lines(workdir / "metrics.jsonl")
    config = json.loads((workdir / "config.json").read_text())
    steps = np.array([record["step"] for record in records])
    window = max(1, len(steps) // 30)

    def draw(axes, name, color, label, scale=1.0):
        values = scale * np.array([float(record[name]) for record in records])
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
        mean = np.convolve(values, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], mean, color=color, label=label)

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    draw(top, "loss", "tab:blue", None)
    top.set(ylabel="training loss", ylim=(0, None))
    draw(bottom, "clip_rate_components", "tab:blue", "of components", 100)
    draw(bottom, "clip_rate_elements", "tab:orange", "of elements", 100)
    bottom.set(xlabel="step", ylabel="clipped [%]", ylim=(-2, 102))
    bottom.legend(
        frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0
    )
    data, model = config["data"], Path(config["model"]).name
    top.set_title(
        f"{data['task'] or Path(data['train_file']).name}, {model}, "
        f"{_clip(config['optimizer'])}, seed {config['seed']}; "
        f"strong lines: mean of {window} steps",
        fontsize="medium",
        loc="left",
        # A dollar in the name of a file begins no formula.
        parse_math=False,
    )
    for axes in (top, bottom):
        axes.margins(x=0.01)
        axes.spines[["top", "right"]].set_visible(False)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _clip(optimizer):
    clip = optimizer.get("clip", "fixed")
    return f"threshold {optimizer['max_norm']}" if clip == "fixed" else f"clip {clip}"
