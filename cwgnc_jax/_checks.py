"""Checks of the numbers that a transformation is given.

The value of a traced number is not known and passes; its shape and dtype are checked.
"""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer


def check_threshold(argument: str, value: Any) -> None:
    """Raises unless this is a positive scalar or infinity."""
    check_scalar(argument, value)
    if is_known(value) and not value > 0:
        raise ValueError(
            f"{argument} must be positive, or inf for no clipping; got {value}"
        )


def check_positive(argument: str, value: Any) -> None:
    """Raises unless this is a positive, finite scalar."""
    check_scalar(argument, value)
    if is_known(value) and not 0 < value < math.inf:
        raise ValueError(f"{argument} must be positive and finite, got {value}")


def check_nonnegative(argument: str, value: Any) -> None:
    """Raises unless this is a finite scalar of at least 0."""
    check_scalar(argument, value)
    if is_known(value) and not 0 <= value < math.inf:
        raise ValueError(f"{argument} must be 0 or a positive number, got {value}")


def check_share(argument: str, value: Any) -> None:
    """Raises unless this is a scalar in [0, 1)."""
    check_scalar(argument, value)
    if is_known(value) and not 0 <= value < 1:
        raise ValueError(f"{argument} must lie in [0, 1), got {value}")


def check_factor(argument: str, value: Any) -> None:
    """Raises unless this is a scalar in (0, 1]."""
    check_scalar(argument, value)
    if is_known(value) and not 0 < value <= 1:
        raise ValueError(f"{argument} must lie in (0, 1], got {value}")


def check_interval(low: Any, high: Any) -> None:
    """Raises unless these are the ends of an interval of numbers of at least 0."""
    check_threshold("high", high)
    check_nonnegative("low", low)
    if is_known(low) and is_known(high) and low > high:
        raise ValueError(f"low must not exceed high, got {low} and {high}")


def check_percentile(percentile: Any) -> None:
    """Raises unless this is a scalar in [0, 100]."""
    check_scalar("percentile", percentile)
    if is_known(percentile) and not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in [0, 100], got {percentile}")


def check_count(argument: str, value: Any, least: int, *, static: bool = False) -> None:
    """Raises unless this is a number of steps; a static one is an int."""
    is_int = not isinstance(value, bool) and isinstance(value, numbers.Integral)
    if static and not is_int:
        raise TypeError(
            f"{argument} must be an int that is known when the program is compiled, "
            f"got {value!r}. Under optax.inject_hyperparams name it in static_args."
        )
    check_at_least(argument, value, least)


def check_at_least(argument: str, value: Any, least: float) -> None:
    """Raises unless this is a scalar of at least so much."""
    check_scalar(argument, value)
    if is_known(value) and not value >= least:
        raise ValueError(f"{argument} must be at least {least}, got {value}")


def check_flag(argument: str, value: Any) -> None:
    """Raises unless this is True or False, traced or not."""
    dtype = getattr(value, "dtype", None)
    if not (isinstance(value, bool) or dtype == jnp.dtype("bool")):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    if shape := jnp.shape(value):
        raise ValueError(f"{argument} must be a scalar, got an array of shape {shape}")


def check_scalar(argument: str, value: Any) -> None:
    """Raises unless this is a real number, traced or not."""
    if not _is_real(value):
        hint = ""
        if argument == "max_norm":
            hint = (
                ". It may also be a schedule, rules [(pattern, threshold), ...] for "
                "the names of components, per_element(...) or relative_to_params(...)."
            )
        elif callable(value):
            hint = ". For a schedule use optax.inject_hyperparams."
        raise TypeError(f"{argument} must be a real number, got {value!r}{hint}")
    if shape := jnp.shape(value):
        raise ValueError(f"{argument} must be a scalar, got an array of shape {shape}")


def _is_real(value: Any) -> bool:
    """Says whether this is a real number or an array of real numbers."""
    if value is None or isinstance(value, (bool, str, bytes)):
        return False
    try:
        dtype = jnp.result_type(value)
        jnp.shape(value)  # raises for a type such as float
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def check_transformation(argument: str, value: Any) -> None:
    """Raises unless this is a transformation of gradients."""
    if not callable(getattr(value, "update", None)):
        raise TypeError(
            f"{argument} must be an optax.GradientTransformation, got {value!r}"
        )


def check_inexact(leaves: Iterable[tuple[str, Any]]) -> None:
    """Raises unless all leaves, given with their paths, are real or complex."""
    for path, leaf in leaves:
        try:
            dtype = jnp.result_type(leaf)
        except TypeError as error:
            raise TypeError(
                f"{path!r} is no array but {leaf!r}. Give the transformation arrays "
                f"only: eqx.filter(model, eqx.is_inexact_array) in Equinox, "
                f"nnx.state(model, nnx.Param) in NNX."
            ) from error
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{path!r} has the dtype {dtype.name}, but what is trained must be "
                f"real or complex. Keep it out with optax.masked or optax.partition, "
                f"or put None in its place."
            )


def is_known(value: Any) -> bool:
    """Says whether a value can be looked at, that is, is not traced."""
    return not isinstance(value, Tracer)
