"""Names and numbers as tables and figures show them."""

import math

# In the order of the paper's Table 1; unknown methods come last.
_METHOD_LABELS = {
    "finetune": "fine-tuning, own settings",
    "full": "plain fine-tuning",
    "none": "no clip",
    "global": "global clip",
    "devlin": "Devlin et al.",
    "bertadam": "BertAdam (norm 1 each)",
    "bias_correction": "+ bias correction",
    "mixout": "Mixout (Lee et al.)",
    "mosbach": "Mosbach et al.",
    "reinit": "re-initialised top (Zhang et al.)",
    "llrd": "layer-wise decay (Zhang et al.)",
    "prior_decay": "prior decay (Zhang et al.)",
    "gu": "gradual unfreezing",
    "gu_state": "gradual unfreezing (moments kept)",
    "gu_schedule": "gradual unfreezing (one schedule)",
    "gu_state_schedule": "gradual unfreezing (moments kept, one schedule)",
    "gu_restart": "gradual unfreezing (restart)",
    "zclip": "ZClip",
    "autoclip": "AutoClip",
    "olmo": "OLMo's clip",
    "aggc": "AGGC-like",
    "adagc": "AdaGC",
    "cwgnc": "CWGNC",
    "cwgnc_code": "CWGNC (its code's values)",
}
_TASK_LABELS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "own": "own data",
}
_METRIC_LABELS = {
    "matthews_correlation": "Matthews correlation",
    "f1": "F1",
    "macro_f1": "mean F1",
    "pearson": "Pearson correlation",
    "spearmanr": "Spearman correlation",
}
NOTHING = "–"
"""Stands for a number that does not exist."""


def method_label(method: str) -> str:
    """Returns the name of a method as in the paper."""
    base, plus, clip = method.partition("+")
    label = _METHOD_LABELS.get(base, base.replace("_", " "))
    return f"{label} + {_METHOD_LABELS.get(clip, clip)}" if plus else label


def method_rank(method: str) -> tuple[int, str]:
    """Returns the sort key of a method."""
    names = list(_METHOD_LABELS)
    return (names.index(method) if method in names else len(names), method)


def task_label(task: str) -> str:
    """Returns the name of a task as its authors write it."""
    return _TASK_LABELS.get(task, task)


def metric_label(metric: str) -> str:
    """Returns the name of a metric."""
    return _METRIC_LABELS.get(metric, metric.replace("_", " "))


def run_count(number: int, failed: bool) -> str:
    """Returns a number of failed or successful runs in words."""
    kind = "failed" if failed else "successful"
    return f"{number} {kind} run{'' if number == 1 else 's'}"


def threshold_label(max_norm: float, clip: str = "fixed") -> str:
    """Formats a threshold: a number, "none" for infinity, or "learned"."""
    if clip != "fixed":
        return "learned"
    return "none" if math.isinf(max_norm) else f"{max_norm:g}"


def format_rate(value: float) -> str:
    """Formats a learning rate or epsilon, such as 2e-5."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < value < 0.01 else f"{value:g}"


def format_number(value: float, digits: int = 2) -> str:
    """Formats a number with a fixed number of decimals and never as minus zero."""
    if not math.isfinite(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def format_score(value: float) -> str:
    """Formats a score, or a difference between scores, times 100."""
    return format_number(100 * value, 1)


def format_share(value: float) -> str:
    """Formats a share in percent."""
    return NOTHING if math.isnan(value) else f"{100 * value:.0f} %"


def format_mean_std(
    mean: float, std: float, scale: float = 100, digits: int = 1
) -> str:
    """Formats a mean and a standard deviation, scores times 100 by default."""
    if math.isnan(mean):
        return NOTHING
    mean, std = scale * mean, scale * std
    return f"{format_number(mean, digits)} ± {format_number(std, digits)}"


def format_p_values(raw: float, holm: float) -> str:
    """Formats a p-value, followed by its Holm-corrected value."""
    if math.isnan(raw):
        return NOTHING
    return " → ".join("<0.001" if p < 0.001 else f"{p:.3f}" for p in (raw, holm))
