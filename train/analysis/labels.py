"""What tables and figures call the things of a study."""

import math

# In the order of the paper's Table 1; methods not named here come last.
METHODS = {
    "full": "plain fine-tuning",
    "none": "no clip",
    "global": "global clip",
    "devlin": "Devlin et al.",
    "bias_correction": "+ bias correction",
    "mixout": "Mixout (Lee et al.)",
    "mosbach": "Mosbach et al.",
    "reinit": "re-initialised top (Zhang et al.)",
    "llrd": "layer-wise decay (Zhang et al.)",
    "prior_decay": "prior decay (Zhang et al.)",
    "gu": "gradual unfreezing",
    "gu_restart": "gradual unfreezing (restart)",
    "zclip": "ZClip",
    "autoclip": "AutoClip",
    "olmo": "OLMo's clip",
    "aggc": "AGGC",
    "adagc": "AdaGC",
    "cwgnc": "CWGNC",
    "cwgnc_code": "CWGNC (its code's values)",
}
# Those whose thresholds are learned during training.
_LEARNED = ("zclip", "autoclip", "olmo", "aggc", "adagc")
_TASKS = {
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
_METRICS = {
    "matthews_correlation": "Matthews correlation",
    "f1": "F1",
    "macro_f1": "mean F1",
    "pearson": "Pearson correlation",
    "spearmanr": "Spearman correlation",
}
NOTHING = "–"


def method_label(method: str) -> str:
    """Returns the name of a method as the paper has it."""
    base, plus, clip = method.partition("+")
    label = METHODS.get(base, base.replace("_", " "))
    return f"{label} + {METHODS.get(clip, clip)}" if plus else label


def method_rank(method: str) -> tuple[int, str]:
    """Returns what methods are sorted by."""
    names = list(METHODS)
    return (names.index(method) if method in names else len(names), method)


def task_label(task: str) -> str:
    """Returns the name of a task as its authors write it."""
    return _TASKS.get(task, task)


def metric_label(metric: str) -> str:
    """Returns the name of a score."""
    return _METRICS.get(metric, metric.replace("_", " "))


def rate(value: float) -> str:
    """Writes a learning rate or eps: 2e-5."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < value < 0.01 else f"{value:g}"


def threshold(value: float) -> str:
    """Writes a threshold; infinity is none."""
    return "none" if math.isinf(value) else f"{value:g}"


def cell_threshold(method: str, max_norm: float) -> str:
    """Writes the threshold of a method's runs."""
    return "learned" if method in _LEARNED else threshold(max_norm)


def clips(method: str, max_norm: float) -> bool:
    """Whether a method's runs have a clip."""
    return cell_threshold(method, max_norm) != "none"


def hundredfold(value: float, digits: int = 1) -> str:
    """Writes a score, or a difference of scores, times 100."""
    return number(100 * value, digits)


def number(value: float, digits: int = 2) -> str:
    """Writes a number with so many digits behind the point, and no minus zero."""
    if not math.isfinite(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def mean_std(mean: float, std: float) -> str:
    """Writes a mean and a standard deviation of scores times 100."""
    if math.isnan(mean):
        return NOTHING
    return f"{hundredfold(mean)} ± {hundredfold(std)}"


def p_value(raw: float, holm: float) -> str:
    """Writes a p-value with Holm's behind it."""
    if math.isnan(raw):
        return NOTHING
    return " → ".join("<0.001" if p < 0.001 else f"{p:.3f}" for p in (raw, holm))
