"""The training and the evaluation step of one run, as pure functions."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import cwgnc_jax
from cwgnc_jax import models
from train.component_statistics import component_statistics
from train.optimizer import (
    COMPONENT_FNS,
    Hyperparameters,
    linear_schedule,
    make_clip,
    make_optimizer,
)
from train.sharing import Sharing


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is fixed when a step is compiled; runs that share it share a program."""

    model: models.EncoderConfig
    regression: bool
    components: str
    b1: float
    b2: float
    dtype: str
    mixout: bool = False
    prior_decay: bool = False
    layer_decay: bool = False
    trained_layers: int | None = None
    """How many of the top layers train, the heads with them; None for everything."""
    statistics: bool = False
    """Whether the components of some steps are measured."""
    remat: bool = False
    """Whether the backward pass computes the inside of each layer again."""
    nonfinite: str = "propagate"
    """What follows from a gradient that is not finite; see ``OptimizerConfig``."""
    clip: str = "fixed"
    """How a component's threshold comes about; see ``OptimizerConfig``."""

    def trains(self, path: str) -> bool:
        """Whether the parameter of this path trains."""
        if self.trained_layers is None:
            return True
        frozen = self.model.num_hidden_layers - self.trained_layers
        return cwgnc_jax.encoder_depth(path) > frozen


class Run(NamedTuple):
    """A run is a value: all that its next step depends on besides the batch.

    ``origin`` are the parameters that it started from, where its recipe needs them,
    else None.
    """

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array
    numbers: Hyperparameters
    origin: Any = None


class Metrics(NamedTuple):
    """What a step reports.

    Attributes:
      loss: Mean over the examples of the batch, before the update.
      learning_rate: That of this update.
      grad_norm: The norm of all gradients together, before the clip.
      clip_rate_components: The share of components that were clipped.
      clip_rate_elements: The same with every component weighted by its size.
      norms: Each component's gradient norm before the clip.
      statistics: See ``component_statistics``; None for a step that is not measured.
      coefficients: What the clip scaled each component by, where its thresholds are
        learned; None where they follow from the norms.
    """

    loss: jax.Array
    learning_rate: jax.Array
    grad_norm: jax.Array
    clip_rate_components: jax.Array
    clip_rate_elements: jax.Array
    norms: dict[str, jax.Array]
    statistics: jax.Array | None = None
    coefficients: dict[str, jax.Array] | None = None


CURVES = tuple(
    name
    for name in Metrics._fields
    if name not in ("norms", "statistics", "coefficients")
)
"""The metrics that are one number a step."""

# torch's rule, which the clip follows by default: clipped if norm + 1e-6 > max_norm.
_CLIP_EPS = 1e-6


def init_run(
    recipe: Recipe, params: Any, key: jax.Array, numbers: Hyperparameters
) -> Run:
    """A run before its first step."""
    needed = recipe.mixout or recipe.prior_decay or recipe.statistics
    origin = params if needed else None
    trained, _ = models.split_params(params, recipe.trains)
    opt_state = _optimizer(recipe, numbers, origin).init(trained)
    return Run(params, opt_state, key, jnp.zeros((), jnp.int32), numbers, origin)


def train_step(
    recipe: Recipe,
    run: Run,
    batch: dict[str, jax.Array],
    measured: bool = False,
) -> tuple[Run, Metrics]:
    """Makes one update: forward, backward, clip, Adam, decay, learning rate.

    Only what trains is differentiated: there is no backward pass below the lowest layer
    that does, and frozen parameters are passed on as they are.

    Args:
      recipe: What is fixed at compilation.
      run: The run so far.
      batch: See ``packing.packed_batch``, or without ``first_tokens`` a row for each
        example; examples of weight 0 do not count. With a leading axis of parts these
        are taken one after the other, in the memory of one; the gradient is that of
        the mean over all examples, whatever the weights of the parts are.
      measured: Whether to measure the components, with a recipe that has statistics. It
        is fixed at compilation: a branch within the step would cost every step copies
        of the parameters.

    Returns:
      The run one step on, and what the step reports.
    """
    return _update(recipe, run, *_loss_and_grads(recipe, run, batch), measured)


def train_step_alone(
    recipe: Recipe,
    runs: Run,
    batch: dict[str, jax.Array],
    measured: bool = False,
    sharing: Sharing | None = None,
) -> tuple[Run, Metrics]:
    """``train_step`` of runs of which there is one only, in place.

    Of ``runs`` and of what is returned everything has a leading axis of length 1. The
    update keeps it: where it is taken off before and put back behind, XLA's CPU backend
    does not see that the update can write over what it reads, and copies it first: a
    fifth of MiniLM's step of 4 x 48 tokens.

    Args:
      recipe: See ``train_step``.
      runs: The run.
      batch: See ``train_step``.
      measured: See ``train_step``.
      sharing: How this device shares the step with others, each of which calls this
        function with a batch of its own. The gradients of all are summed before the
        clip.

    Returns:
      See ``train_step``.
    """
    run = jax.tree.map(lambda leaf: leaf[0], runs)
    found = _loss_and_grads(recipe, run, batch, sharing)
    found = jax.tree.map(lambda leaf: leaf[None], found)
    update = functools.partial(_update, recipe, measured=measured, sharing=sharing)
    return jax.vmap(update)(runs, *found)


def _loss_and_grads(
    recipe: Recipe,
    run: Run,
    batch: dict[str, jax.Array],
    sharing: Sharing | None = None,
):
    """The mean loss of a batch, and its gradients by the parameters that train."""
    numbers = run.numbers
    key = jax.random.fold_in(run.key, run.step)
    trained, frozen = models.split_params(run.params, recipe.trains)
    whole = (lambda params: params) if sharing is None else sharing.whole
    weights = batch["weights"]
    total = jnp.sum(weights)
    if sharing is not None:
        total = jax.lax.psum(total, sharing.axis_name)
        trained = sharing.own(trained)

    def loss_fn(trained, batch, dropout_key):
        params = models.merge_params(whole(trained), whole(frozen))
        if recipe.mixout:
            # The model draws from the keys that fold_in makes of small numbers.
            mixout_key = jax.random.fold_in(key, 2**31)
            params = cwgnc_jax.mixout(
                params, whole(run.origin), numbers.mixout_rate, mixout_key
            )
        logits = models.apply(
            recipe.model,
            params,
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            first_tokens=batch.get("first_tokens"),
            key=dropout_key,
            dropout_rate=numbers.dropout_rate,
            dtype=jnp.dtype(recipe.dtype),
            remat=recipe.remat,
        ).logits
        losses = example_losses(recipe, logits, batch["labels"])
        return jnp.sum(losses * batch["weights"]) / total

    loss_and_grads = jax.value_and_grad(loss_fn)
    parts = weights.shape[0] if weights.ndim == 2 else 1
    first = 0 if sharing is None else parts * jax.lax.axis_index(sharing.axis_name)
    if weights.ndim == 2:

        def add(sums, part):
            batch, index = part
            found = loss_and_grads(trained, batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, found), None

        nothing = (
            jnp.zeros_like(weights, shape=()),
            jax.tree.map(jnp.zeros_like, trained),
        )
        found, _ = jax.lax.scan(add, nothing, (batch, first + jnp.arange(parts)))
    elif sharing is not None:
        found = loss_and_grads(trained, batch, jax.random.fold_in(key, first))
    else:
        found = loss_and_grads(trained, batch, key)
    return found if sharing is None else sharing.summed(*found)


def _update(
    recipe: Recipe,
    run: Run,
    loss: jax.Array,
    grads: Any,
    measured: bool,
    sharing: Sharing | None = None,
) -> tuple[Run, Metrics]:
    """The run one step on, and what the step reports."""
    numbers = run.numbers
    axis_name = None if sharing is None else sharing.norms_axis
    trained, frozen = models.split_params(run.params, recipe.trains)
    tx = _optimizer(recipe, numbers, run.origin, axis_name)
    updates, opt_state = tx.update(grads, run.opt_state, trained)

    component_fn = COMPONENT_FNS[recipe.components]
    # The compiler computes these once, together with the clip's own.
    norms = cwgnc_jax.component_norms(grads, component_fn, axis_name=axis_name)
    stacked = jnp.stack(list(norms.values()))
    if recipe.clip == "fixed":
        clipped = (stacked + _CLIP_EPS > numbers.max_norm).astype(jnp.float32)
        whole = grads if sharing is None else jax.eval_shape(sharing.whole, grads)
        sizes = list(cwgnc_jax.component_sizes(whole, component_fn).values())
        shares = jnp.asarray([size / sum(sizes) for size in sizes], jnp.float32)
        rates = jnp.mean(clipped), jnp.sum(clipped * shares)
        coefficients = None
    else:
        report = cwgnc_jax.clip_report(opt_state)
        rates = report.clip_rate_components, report.clip_rate_elements
        coefficients = report.coefficient
    metrics = Metrics(
        loss=loss,
        learning_rate=linear_schedule(numbers)(run.step),
        grad_norm=jnp.sqrt(jnp.sum(jnp.square(stacked))),
        clip_rate_components=rates[0],
        clip_rate_elements=rates[1],
        norms=norms,
        coefficients=coefficients,
    )
    stepped = optax.apply_updates(trained, updates)
    if recipe.nonfinite == "skip_step":
        finite = jnp.all(jnp.isfinite(stacked))
        stepped, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (stepped, opt_state),
            (trained, run.opt_state),
        )
    params = models.merge_params(stepped, frozen)
    if measured:
        clipped, _ = _clip(recipe, numbers, axis_name).update(grads, run.opt_state[0])
        zeros = jax.tree.map(jnp.zeros_like, frozen)
        changes = [models.merge_params(x, zeros) for x in (grads, clipped, updates)]
        statistics = component_statistics(params, run.origin, *changes)
        metrics = metrics._replace(statistics=statistics)
    run = run._replace(
        params=params,
        opt_state=opt_state,
        step=run.step + 1,
    )
    return run, metrics


def eval_step(recipe: Recipe, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Computes the logits of a batch, ``[examples, num_labels]``, without dropout."""
    return models.apply(
        recipe.model,
        params,
        batch["input_ids"],
        batch["attention_mask"],
        batch["token_type_ids"],
        first_tokens=batch.get("first_tokens"),
        dtype=jnp.dtype(recipe.dtype),
    ).logits


def _optimizer(
    recipe: Recipe,
    numbers: Hyperparameters,
    origin: Any,
    axis_name: str | None = None,
):
    if origin is not None:
        origin, _ = models.split_params(origin, recipe.trains)
    return make_optimizer(
        numbers,
        _clip(recipe, numbers, axis_name),
        recipe.b1,
        recipe.b2,
        prior=origin if recipe.prior_decay else None,
        layer_decay=recipe.layer_decay,
    )


def _clip(recipe: Recipe, numbers: Hyperparameters, axis_name: str | None):
    return make_clip(
        numbers,
        recipe.clip,
        recipe.components,
        zero_nonfinite=recipe.nonfinite == "zero_component",
        axis_name=axis_name,
    )


def example_losses(recipe: Recipe, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross entropy of each example, or the squared error where a number is wanted."""
    if recipe.regression:
        return jnp.square(logits[:, 0] - labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
