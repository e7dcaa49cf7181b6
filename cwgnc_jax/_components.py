"""From a parameter's path to its component: the set of leaves that share one norm."""

import difflib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from cwgnc_jax._tree_paths import flatten_with_paths, natural_key

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
    """Joins the parameters of one module: a kernel with its bias.

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

    A layer is everything below the first name that is a number or ends in an
    underscore and a number (``layer/3``, ``h_3``, ``Block_3``). What lies outside the
    numbered layers is grouped by the first two names of its module, which for BERT are
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
    for depth, name in enumerate(names[:-1], start=1):
        if re.fullmatch(r"(.*_)?[0-9]+", name):
            return "/".join(names[:depth])
    return "/".join(names[:-1][:2]) or path


def by_rules(rules: Sequence[tuple[str, str]]) -> ComponentFn:
    r"""Names components by regular expressions; the first that matches wins.

    A rule must match the whole path. Its name may refer to the groups of its pattern
    (``\1``), as in :meth:`re.Match.expand`. The rules must cover every parameter, and
    each must match at least one: both are checked when the optimizer is initialised.

    Args:
      rules: Pairs of a pattern and the name of the component.

    Returns:
      A function from path to component.

    Raises:
      TypeError: If the rules are not pairs of strings.
      ValueError: If there is no rule, or a pattern is no regular expression, or a name
        refers to a group that its pattern lacks.

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
        self._rules = [self._compile(rule) for rule in rules]
        if not self._rules:
            raise ValueError("by_rules needs at least one (pattern, name) pair, got 0")

    @staticmethod
    def _compile(rule: Any) -> tuple[re.Pattern[str], str]:
        if not (
            isinstance(rule, (tuple, list))
            and len(rule) == 2
            and all(isinstance(part, str) for part in rule)
        ):
            raise TypeError(
                f"A rule must be a pair of strings (pattern, name), got {rule!r}"
            )
        pattern, name = rule
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is no regular expression: {error}"
            ) from error
        try:
            # The alternative matches the empty string and leaves every group unset.
            re.compile(f"(?:{pattern})|").fullmatch("").expand(name)  # type: ignore
        except (re.error, IndexError) as error:
            raise ValueError(
                f"The name {name!r} refers to a group that {pattern!r} lacks: {error}"
            ) from error
        return compiled, name

    def _match(self, path: str) -> tuple[int, str] | None:
        for i, (pattern, name) in enumerate(self._rules):
            if match := pattern.fullmatch(path):
                return i, match.expand(name)
        return None

    def __call__(self, path: str) -> str:
        return self.cover([path])[0]

    def cover(self, paths: Iterable[str]) -> list[str]:
        """Names the component of each path; raises if a path is left without."""
        matches = {path: self._match(path) for path in paths}
        missed = [path for path, match in matches.items() if match is None]
        if missed:
            raise ValueError(
                f"No component rule covers {listed(missed)}. Add a rule that matches "
                f'the whole path, for instance (".*", "rest") as the last one.'
            )
        return [match[1] for match in matches.values() if match]

    def check_all_used(self, paths: Sequence[str]) -> None:
        """Raises if a rule is the first match of none of the paths."""
        used = {match[0] for path in paths if (match := self._match(path))}
        for i, (pattern, name) in enumerate(self._rules):
            if i in used:
                continue
            if any(pattern.fullmatch(path) for path in paths):
                raise ValueError(
                    f"The component rule {(pattern.pattern, name)!r} decides nothing: "
                    f"an earlier rule matches all its paths first. Move it up or "
                    f"drop it."
                )
            nearest = difflib.get_close_matches(pattern.pattern, paths, 1, cutoff=0)[0]
            raise ValueError(
                f"The component rule {(pattern.pattern, name)!r} matches no parameter. "
                f"A rule must match the whole path; the nearest one is {nearest!r}."
            )


def component_sizes(
    tree: Any, component_fn: ComponentFn = by_parameter
) -> OrderedDict[str, int]:
    """Counts the elements of each component.

    Args:
      tree: Parameters or updates; the leaves need only a shape, so the result of
        ``jax.eval_shape`` serves too.
      component_fn: Maps a path to its component's name.

    Returns:
      Component name to number of elements, layer 10 after layer 2.

    Raises:
      TypeError: If ``component_fn`` is no function from a string to a string.
      ValueError: If rules leave a parameter without a component.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> params = {"dense": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
      >>> dict(cwgnc_jax.component_sizes(params, cwgnc_jax.by_module))
      {'dense': 8}
    """
    names, leaves, _ = label_leaves(tree, component_fn)
    sizes = OrderedDict.fromkeys(ordered(names), 0)
    for name, leaf in zip(names, leaves, strict=True):
        sizes[name] += math.prod(jnp.shape(leaf))
    return sizes


def label_leaves(
    tree: Any, component_fn: ComponentFn
) -> tuple[list[str], list[Any], Any]:
    """Names the component of every leaf; see ``flatten_with_paths`` for the rest."""
    paths, leaves, treedef = flatten_with_paths(tree)
    if isinstance(component_fn, _Rules):
        return component_fn.cover(paths), leaves, treedef
    names = [component_fn(path) for path in paths]
    for path, name in zip(paths, names, strict=True):
        if not isinstance(name, str):
            raise TypeError(
                f"component_fn must return the component's name as a string, but for "
                f"{path!r} it returned {name!r}"
            )
    return names, leaves, treedef


def check_components(params: Any, component_fn: ComponentFn) -> None:
    """Raises if the parameters cannot be assigned, or a rule matches none of them."""
    label_leaves(params, component_fn)
    paths, _, _ = flatten_with_paths(params)
    if isinstance(component_fn, _Rules) and paths:
        component_fn.check_all_used(paths)


def check_component_fn(component_fn: Any) -> None:
    """Raises if this is no function at all."""
    if not callable(component_fn):
        raise TypeError(
            f"component_fn must be a function from a parameter's path to its "
            f"component's name, got {component_fn!r}. Under optax.inject_hyperparams "
            f'pass static_args="component_fn".'
        )


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once, layer 10 after layer 2."""
    return sorted(set(names), key=natural_key)


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Spells at most ``limit`` names, and says how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
