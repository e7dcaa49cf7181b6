"""How steps are compiled for the devices at hand."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from train.steps import Recipe, eval_step, train_step


def compile_train_step(recipe: Recipe) -> Callable[..., Any]:
    """``train_step`` of a recipe; the buffers of the run it is given are reused."""
    return jax.jit(functools.partial(train_step, recipe), donate_argnums=0)


def compile_eval_step(recipe: Recipe) -> Callable[..., Any]:
    """``eval_step`` of a recipe."""
    return jax.jit(functools.partial(eval_step, recipe))
