"""Component functions, which say which leaves share one norm."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cwgnc_jax._rules import FirstMatch, compiled, is_list
from cwgnc_jax._tree_paths import natural_key

ComponentFn = Callable[[str], str]
"""Maps a parameter's "/"-joined path to the name of its component."""


def by_parameter(path: str) -> str:
    """Makes every parameter a component of its own, as the paper does.

    Args:
      path: A parameter's path.

    Returns:
      The path itself.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.by_parameter("bert/encoder/layer/0/output/dense/kernel")
      'bert/encoder/layer/0/output/dense/kernel'

    References:
      Yang and Ma, `Improving Stability of Fine-Tuning Pretrained Language Models via
      Component-Wise Gradient Norm Clipping
      <https://aclanthology.org/2022.emnlp-main.322>`_, 2022, section 3
    """
    return path


def by_module(path: str) -> str:
    """Joins the parameters of one module, such as a kernel and its bias.

    Args:
      path: A parameter's path.

    Returns:
      The path without its last name; a parameter at the root keeps its own.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.by_module("bert/encoder/layer/0/output/dense/kernel")
      'bert/encoder/layer/0/output/dense'
    """
    return path.rpartition("/")[0] or path


def by_layer(path: str) -> str:
    """Joins the parameters of one layer.

    A layer is everything below the first name that is a number or ends in an underscore
    and a number (``layer/3``, ``h_3``, ``Block_3``). Parameters outside the numbered
    layers are grouped by the first two names of their module; for BERT these groups are
    ``bert/embeddings``, ``bert/pooler`` and ``classifier``.

    Args:
      path: A parameter's path.

    Returns:
      The path of the layer.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.by_layer("bert/encoder/layer/11/output/dense/kernel")
      'bert/encoder/layer/11'
      >>> cwgnc_jax.by_layer("bert/embeddings/LayerNorm/scale")
      'bert/embeddings'
      >>> cwgnc_jax.by_layer("classifier/kernel")
      'classifier'
    """
    names = path.split("/")
    if depth := _layer_depth(names):
        return "/".join(names[:depth])
    return "/".join(names[:-1][:2]) or path


def by_module_type(path: str) -> str:
    """Joins modules of the same type across all layers, such as all query projections.

    This is :func:`by_module` without the number of the layer, which is found as in
    :func:`by_layer`.

    Args:
      path: A parameter's path.

    Returns:
      The path of the module without the number of the layer.

    Examples:
      >>> import cwgnc_jax
      >>> cwgnc_jax.by_module_type("bert/encoder/layer/11/attention/self/query/bias")
      'bert/encoder/layer/attention/self/query'
      >>> cwgnc_jax.by_module_type("Block_3/Dense_0/kernel")
      'Block/Dense_0'

    References:
      Li et al., `AGGC: Adaptive Group Gradient Clipping for Stabilizing Large Language
      Model Training <https://arxiv.org/abs/2601.11864>`_, 2026
    """
    names = path.split("/")
    if depth := _layer_depth(names):
        kind = re.sub(r"_?[0-9]+$", "", names[depth - 1])
        names[depth - 1 : depth] = [kind] if kind else []
    return by_module("/".join(names))


def _layer_depth(names: list[str]) -> int:
    """Counts the names up to and including the layer's; 0 if there is no layer."""
    for depth, name in enumerate(names[:-1], start=1):
        if re.fullmatch(r"(.*_)?[0-9]+", name):
            return depth
    return 0


def by_rules(rules: Sequence[tuple[str, str]]) -> ComponentFn:
    r"""Names components by regular expressions; the first that matches wins.

    A pattern must match the whole path. The name may refer to groups of the pattern
    (``\1``), as in :meth:`re.Match.expand`. The rules must cover every parameter, and
    each must match at least one; both are checked when the optimizer is initialised.

    Args:
      rules: Pairs of a pattern and the name of the component.

    Returns:
      A function from a path to the name of its component.

    Raises:
      TypeError: If a rule is not a pair of strings.
      ValueError: If there are no rules, a pattern is not a valid regular expression, or
        a name refers to a group that its pattern lacks.

    Examples:
      >>> import cwgnc_jax
      >>> component_fn = cwgnc_jax.by_rules([
      ...     (r".*/layer/([0-9]+)/attention/.*", r"attention of layer \1"),
      ...     (r".*", "all the rest"),
      ... ])
      >>> component_fn("bert/encoder/layer/3/attention/self/query/kernel")
      'attention of layer 3'
    """
    return _Rules(rules)


class _Rules:
    def __init__(self, rules: Sequence[tuple[str, str]]):
        for rule in rules:
            _check_rule(rule)
        if not rules:
            raise ValueError("by_rules needs at least one (pattern, name) pair, got 0")
        self._names = [name for _, name in rules]
        self._patterns = FirstMatch(
            rules,
            kind="component rule",
            thing="parameter",
            key="path",
            last='(".*", "rest")',
        )

    def __call__(self, path: str) -> str:
        return self.cover([path])[0]

    def cover(self, paths: Iterable[str]) -> list[str]:
        """Names the component of each path; raises if a path has none."""
        return [
            match.expand(self._names[i]) for i, match in self._patterns.cover(paths)
        ]

    def check_all_used(self, paths: Sequence[str]) -> None:
        """Raises if a rule is the first match of no path."""
        self._patterns.check_all_used(paths)


def _check_rule(rule: Any) -> None:
    if not (
        is_list(rule) and len(rule) == 2 and all(isinstance(part, str) for part in rule)
    ):
        raise TypeError(
            f"a rule must be a pair of strings (pattern, name), got {rule!r}"
        )
    pattern, name = rule
    compiled(pattern)
    try:
        # The empty alternative matches the empty string and leaves every group unset.
        match = re.compile(f"(?:{pattern})|").fullmatch("")
        assert match is not None
        match.expand(name)
    except (re.error, IndexError) as error:
        raise ValueError(
            f"the name {name!r} refers to a group that {pattern!r} lacks: {error}"
        ) from error


def label_paths(paths: list[str], component_fn: Callable[[str], Any]) -> list[str]:
    """Names the component of each path."""
    if isinstance(component_fn, _Rules):
        return component_fn.cover(paths)
    names = [component_fn(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if not isinstance(name, str):
            raise TypeError(
                f"component_fn must return the component's name as a string, but for "
                f"{path!r} it returned {name!r}"
            )
    return names


def check_all_used(paths: list[str], component_fn: ComponentFn) -> None:
    """Raises if a rule of :func:`by_rules` is the first match of no path."""
    if isinstance(component_fn, _Rules) and paths:
        component_fn.check_all_used(paths)


def check_component_fn(component_fn: Any) -> None:
    """Raises unless this is a function or None."""
    if component_fn is not None and not callable(component_fn):
        raise TypeError(
            f"component_fn must be a function from a parameter's path to its "
            f"component's name, got {component_fn!r}. Under optax.inject_hyperparams "
            f'pass static_args="component_fn".'
        )


def ordered(names: Iterable[str]) -> list[str]:
    """Sorts the names, each once, with layer 10 after layer 2."""
    return sorted(set(names), key=lambda name: (natural_key(name), name))
