"""The picture of one run: its loss and how much of it was clipped."""

from pathlib import Path

import numpy as np

from train.records import read_lines


def draw_curves(workdir: Path) -> Path:
    """Draws ``curves.png`` from the run's ``metrics.jsonl``.

    Args:
      workdir: The run's folder.

    Returns:
      The path of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_lines(workdir / "metrics.jsonl")
    steps = np.array([record["step"] for record in records])

    def series(name):
        return np.array([float(record[name]) for record in records])

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7, 6), sharex=True, layout="constrained"
    )
    loss = series("loss")
    top.plot(steps, loss, color="tab:blue", alpha=0.3, linewidth=0.8, label="a step")
    window = max(1, len(steps) // 30)
    if window > 1:
        mean = np.convolve(loss, np.ones(window) / window, "valid")
        label = f"mean of {window} steps"
        top.plot(steps[window - 1 :], mean, color="tab:blue", label=label)
    top.set_ylabel("training loss")
    top.set_ylim(bottom=0)
    top.legend(frameon=False)
    for name, label in (
        ("clip_rate_components", "of components"),
        ("clip_rate_elements", "of elements"),
    ):
        bottom.plot(steps, 100 * series(name), linewidth=1, label=label)
    bottom.set(xlabel="step", ylabel="clipped [%]", ylim=(-2, 102))
    bottom.legend(frameon=False, title="clip rate")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    path = workdir / "curves.png"
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path
