"""Whether the numbers that a transformation is given are ones that it can take."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def check_positive(argument: str, value: Any) -> None:
    """Raises unless this is a positive scalar, or may be one that is traced."""
    check_scalar(argument, value)
    if is_known(value) and not value > 0:
        raise ValueError(
            f"{argument} must be positive, or inf for no clipping; got {value}"
        )


def check_eps(eps: Any) -> None:
    """Raises unless this is zero or a small positive number."""
    check_scalar("eps", eps)
    if is_known(eps) and not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or a small positive number, got {eps}")


def check_share(argument: str, value: Any) -> None:
    """Raises unless this is a scalar from 0 up to, and without, 1."""
    check_scalar(argument, value)
    if is_known(value) and not 0 <= value < 1:
        raise ValueError(f"{argument} must be at least 0 and below 1, got {value}")


def check_interval(low: Any, high: Any) -> None:
    """Raises unless these are the ends of an interval of positive numbers."""
    check_positive("high", high)
    check_scalar("low", low)
    if is_known(low) and not 0 <= low < math.inf:
        raise ValueError(f"low must be 0 or a positive number, got {low}")
    if is_known(low) and is_known(high) and low > high:
        raise ValueError(f"low must not exceed high, got {low} and {high}")


def check_percentile(percentile: Any) -> None:
    """Raises unless this is a scalar from 0 to 100."""
    check_scalar("percentile", percentile)
    if is_known(percentile) and not 0 <= percentile <= 100:
        raise ValueError(f"percentile must be from 0 to 100, got {percentile}")


def check_count(argument: str, value: Any, least: int, *, static: bool = False) -> None:
    """Raises unless this is a number of steps."""
    if static and not (isinstance(value, int) and not isinstance(value, bool)):
        raise TypeError(
            f"{argument} must be an int, since it is the shape of an array; got "
            f"{value!r}. Under optax.inject_hyperparams name it in static_args."
        )
    check_scalar(argument, value)
    if is_known(value) and not value >= least:
        raise ValueError(f"{argument} must be at least {least}, got {value}")


def check_scalar(argument: str, value: Any) -> None:
    """Raises unless this is a real number, or may be one that is traced."""
    number = not isinstance(value, (bool, str, bytes)) and value is not None
    if number:
        try:
            dtype, shape = jnp.result_type(value), jnp.shape(value)
        except TypeError:
            number = False
        else:
            number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(
                dtype, jnp.integer
            )
            if number and shape != ():
                raise ValueError(
                    f"{argument} must be a scalar, got an array of shape {shape}"
                )
    if not number:
        hint = ""
        if argument == "max_norm":
            hint = (
                ". A schedule, rules [(pattern, threshold), ...] over the components' "
                "names, per_element(...) and relative_to_params(...) serve too."
            )
        raise TypeError(f"{argument} must be a real number, got {value!r}{hint}")


def is_known(value: Any) -> bool:
    """Whether a value can be looked at, that is not traced."""
    return not isinstance(value, jax.core.Tracer)
