"""The training step and the evaluation step of one run, as pure functions."""

import dataclasses
import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

import cwgnc_jax
from cwgnc_jax import models
from cwgnc_train.engine.component_statistics import component_statistics
from cwgnc_train.engine.layout import Layout, first_run
from cwgnc_train.engine.optimizer import (
    COMPONENT_FNS,
    LEARNED_CLIPS,
    Hparams,
    scheduled_rate,
)

Params = PyTree[Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What is fixed when a step is compiled; runs that share it share a program."""

    model: models.EncoderConfig
    regression: bool = False
    components: str = "by_parameter"
    b1: float = 0.9
    b2: float = 0.999
    dtype: str = "float32"
    mixout: bool = False
    prior_decay: bool = False
    layer_decay: bool = False
    trained_layers: int | None = None
    """How many top layers train, with the heads; None for everything."""
    statistics: bool = False  # Whether some steps measure the components.
    remat: bool = False
    """Whether the backward pass recomputes the inside of each layer."""
    nonfinite: str = "propagate"
    """The policy for non-finite gradients; see ``OptimizerConfig``."""
    clip: str = "fixed"
    """Where a component's threshold comes from; see ``OptimizerConfig``."""
    adam_by_thaw: bool = False
    """Whether Adam's bias correction counts the steps of each layer from the one in
    which it thawed, as torch does; it then has a state for each iteration."""
    history_length: int | None = None
    """How many norms AutoClip remembers; None for the library's default."""

    def trains(self, path: str) -> bool:
        """Whether the parameter at this path trains."""
        if self.trained_layers is None:
            return True
        return cwgnc_jax.thawed(path, self.model.num_hidden_layers, self.trained_layers)


class RunState(NamedTuple):
    """A run as a value: all that its next step depends on, besides the batch.

    ``init_params`` are the parameters it started from, if its config needs them.
    """

    params: Params
    opt_state: PyTree
    key: Key[Array, ""]
    step: Int[Array, ""]
    hparams: Hparams
    init_params: Params | None = None


class Metrics(NamedTuple):
    """What a step reports."""

    loss: Float[Array, ""]  # Mean over the examples of the batch, before the update.
    learning_rate: Float[Array, ""]
    """The learning rate of this update; 0 if the update was skipped."""
    grad_norm: Float[Array, ""]  # Norm of all gradients together, before the clip.
    clip_rate_components: Float[Array, ""]  # Share of the components that were clipped.
    clip_rate_elements: Float[Array, ""]
    """The same, each component weighted by its size."""
    norms: Float[Array, " components"]
    """Each component's gradient norm before the clip."""
    coefficients: Float[Array, " components"]  # What the clip scaled each component by.
    statistics: Float[Array, "statistics parameters"] | None = None
    """See ``component_statistics``; None in a step that does not measure."""


CURVES = Metrics._fields[:5]
"""The metrics that are one number per step."""


def init_run(
    config: StepConfig, params: Params, key: Key[Array, ""], hparams: Hparams
) -> RunState:
    """Makes a run before its first step."""
    needed = config.mixout or config.prior_decay or config.statistics
    init_params = params if needed else None
    trained, _ = models.split_params(params, config.trains)
    step = jnp.zeros((), jnp.int32)
    tx = _optimizer(config, hparams, scheduled_rate(hparams, step), init_params)
    return RunState(params, tx.init(trained), key, step, hparams, init_params)


def train_step(
    config: StepConfig,
    state: RunState,
    batch: dict[str, Array],
    measured: bool = False,
    layout: Layout | None = None,
    copies: Params | None = None,
) -> tuple[RunState, Metrics]:
    """Makes one update: forward, backward, clip, Adam, decay, learning rate.

    Only what trains is differentiated, so that there is no backward pass below its
    lowest layer. A step that ``skip_step`` skips leaves parameters and optimizer state
    as they were, Adam's count among them; it is still a step of the schedule and of the
    data order, so that the learning rate reaches its end.

    Args:
      config: What is fixed at compilation.
      state: The run so far.
      batch: See ``data.packed_batch``; examples of weight 0 do not count. Parts, along
        a leading axis, are taken one after the other in the memory of one; the gradient
        is that of the mean over all examples.
      measured: Whether to measure the components, with a config that has statistics.
        Fixed at compilation: a branch would cost every step copies of the parameters.
      layout: Where parameters lie, if they may be split over devices.
      copies: What :func:`copies_to_multiply` made of the parameters, if it did.
    """
    loss, grads = loss_and_grads(config, state, batch, layout, copies=copies)
    return update(config, state, loss, grads, measured)


def train_step_alone(
    config: StepConfig,
    states: RunState,
    batch: dict[str, Array],
    measured: bool,
    layout: Layout | None = None,
    axis_name: str | None = None,
) -> tuple[RunState, Metrics]:
    """Makes one update of a single run whose state has an axis over runs."""
    # The update keeps the axis: around one without, XLA copies on CPUs what the update
    # could write over, a fifth of MiniLM's step of 4 x 48 tokens.
    found = loss_and_grads(config, first_run(states), batch, layout, axis_name)
    found = jax.tree.map(lambda leaf: leaf[None], found)
    update_of_run = functools.partial(update, config, measured=measured)
    return jax.vmap(update_of_run)(states, *found)


def loss_and_grads(
    config: StepConfig,
    state: RunState,
    batch: dict[str, Array],
    layout: Layout | None = None,
    axis_name: str | None = None,
    copies: Params | None = None,
) -> tuple[Float[Array, ""], Params]:
    """Computes the mean loss of a batch and its gradients by what trains.

    Under ``jax.pmap``, over ``axis_name``, the batch is this device's share and the sum
    is over all devices.
    """
    hparams = state.hparams
    key = jax.random.fold_in(state.key, state.step)
    params = state.params
    if copies is not None:
        _, others = models.split_params(params, _is_kernel)
        params = models.merge_params(copies, others)
    params = params if layout is None else layout.gather(params)
    trained, frozen = models.split_params(params, config.trains)
    total = jnp.sum(batch["weights"])
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)

    def loss_fn(trained, batch, dropout_key):
        params = models.merge_params(trained, frozen)
        if config.mixout:
            # The model draws from the keys that fold_in makes of small numbers.
            mixout_key = jax.random.fold_in(key, 2**31)
            params = cwgnc_jax.mixout(
                params, state.init_params, hparams.mixout_rate, mixout_key
            )
        logits = compute_logits(
            config,
            params,
            batch,
            key=dropout_key,
            dropout_rate=hparams.dropout_rate,
            remat=config.remat,
        )
        losses = example_losses(config, logits, batch["labels"])
        return jnp.sum(losses * batch["weights"]) / total

    def value_and_grad(*args):
        loss, grads = jax.value_and_grad(loss_fn)(*args)
        # The gradient by a copy has the copy's dtype.
        return loss, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)

    in_parts = batch["weights"].ndim == 2
    parts = batch["weights"].shape[0] if in_parts else 1
    first = 0 if axis_name is None else parts * jax.lax.axis_index(axis_name)
    if in_parts:

        def add(sums, part):
            batch, index = part
            found = value_and_grad(trained, batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, found), None

        zeros = (
            jnp.zeros((), total.dtype),
            jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), trained),
        )
        found, _ = jax.lax.scan(add, zeros, (batch, first + jnp.arange(parts)))
    else:
        own_key = key if axis_name is None else jax.random.fold_in(key, first)
        found = value_and_grad(trained, batch, own_key)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


@jax.named_scope("update")
def update(
    config: StepConfig,
    state: RunState,
    loss: Float[Array, ""],
    grads: Params,
    measured: bool = False,
) -> tuple[RunState, Metrics]:
    """Applies gradients; see :func:`train_step`."""
    trained, frozen = models.split_params(state.params, config.trains)
    # By the run's steps, not the optimizer's: a skipped step is one of the schedule.
    learning_rate = scheduled_rate(state.hparams, state.step)
    tx = _optimizer(config, state.hparams, learning_rate, state.init_params)
    updates, opt_state = tx.update(grads, state.opt_state, trained)
    report = cwgnc_jax.clip_report(opt_state, trained, COMPONENT_FNS[config.components])
    norms = jnp.stack(list(report.norm.values()))
    # To Optax they are any tree.
    stepped = cast(dict[str, Any], optax.apply_updates(trained, updates))
    if config.nonfinite == "skip_step":
        finite = jnp.all(jnp.isfinite(norms))
        stepped, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (stepped, opt_state),
            (trained, state.opt_state),
        )
        learning_rate = jnp.where(finite, learning_rate, 0.0)
    params = models.merge_params(stepped, frozen)
    statistics = None
    if measured:
        clipped, _ = _clip(config, state.hparams).update(grads, state.opt_state[0])
        zeros = jax.tree.map(jnp.zeros_like, frozen)
        changes = [
            models.merge_params(cast(dict[str, Any], x), zeros)
            for x in (grads, clipped, updates)
        ]
        statistics = component_statistics(params, state.init_params, *changes)
    metrics = Metrics(
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=jnp.sqrt(jnp.sum(jnp.square(norms))),
        clip_rate_components=report.clip_rate_components,
        clip_rate_elements=report.clip_rate_elements,
        norms=norms,
        coefficients=jnp.stack(list(report.coefficient.values())),
        statistics=statistics,
    )
    state = state._replace(params=params, opt_state=opt_state, step=state.step + 1)
    return state, metrics


@jax.named_scope("update")
def copies_to_multiply(config: StepConfig, params: Params) -> Params | None:
    """Casts kernels to the dtype in which they are multiplied.

    What writes a kernel can write its copy too, while it is at hand. Returns None
    where the forward pass has no use for copies.
    """
    if config.dtype == "float32" or config.mixout:
        return None
    kernels, _ = models.split_params(params, _is_kernel)
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), kernels)


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")


def compute_logits(
    config: StepConfig, params: Params, batch: dict[str, Array], **dropout
) -> Float[Array, "examples labels"]:
    """Computes the logits of a batch; by default without dropout."""
    return models.apply(
        config.model,
        params,
        batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        segment_ids=batch["segment_ids"],
        cls_positions=batch["cls_positions"],
        dtype=jnp.dtype(config.dtype),
        **dropout,
    ).logits


def example_losses(
    config: StepConfig, logits: Float[Array, "examples labels"], labels: Array
) -> Float[Array, " examples"]:
    """Computes each example's cross entropy, or squared error in a regression."""
    if config.regression:
        return jnp.square(logits.squeeze(1) - labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _optimizer(
    config: StepConfig, hparams: Hparams, learning_rate: Array, init_params: PyTree
) -> optax.GradientTransformation:
    """Chains the parts of one step; by default they are ``cwgnc_jax.cwgnc_adamw``."""
    parts = [
        _clip(config, hparams),
        _adam(config, hparams),
        # Optax types rates as floats; traced scalars work as well.
        optax.add_decayed_weights(hparams.weight_decay, cwgnc_jax.decay_mask),  # type: ignore
    ]
    if config.prior_decay:
        prior, _ = models.split_params(init_params, config.trains)
        # As in Zhang et al.'s code: biases and LayerNorm are free.
        parts.append(
            cwgnc_jax.add_decayed_weights_towards(
                prior, hparams.prior_decay, cwgnc_jax.decay_mask
            )
        )
    if config.layer_decay:
        layers = config.model.num_hidden_layers
        parts.append(
            cwgnc_jax.scale_by_layer_decay(hparams.layer_decay, num_layers=layers)
        )
    return optax.chain(*parts, optax.scale_by_learning_rate(learning_rate))  # type: ignore


def _adam(config: StepConfig, hparams: Hparams) -> optax.GradientTransformation:
    adam = cwgnc_jax.scale_by_adam(
        config.b1, config.b2, hparams.eps, bias_correction=hparams.bias_correction
    )
    if not config.adam_by_thaw:
        return adam
    layers = config.model.num_hidden_layers
    most = config.trained_layers or layers

    def thaws_at(path: str) -> int:
        numbers = range(1, most + 1)
        return next(n for n in numbers if cwgnc_jax.thawed(path, layers, n))

    def labels(params: Any) -> Any:
        paths, _, treedef = cwgnc_jax.flatten_with_paths(params)
        return jax.tree.unflatten(treedef, [thaws_at(path) for path in paths])

    return optax.partition({n: adam for n in range(1, most + 1)}, labels)


def _clip(config: StepConfig, hparams: Hparams) -> optax.GradientTransformation:
    component_fn = COMPONENT_FNS[config.components]
    if config.clip == "fixed":
        return cwgnc_jax.component_clip_by_global_norm(
            hparams.max_norm,
            component_fn,
            nonfinite="zero" if config.nonfinite == "zero_component" else "propagate",
            keep_report=True,
        )
    assert hparams.clip is not None
    numbers: dict[str, Any] = {**hparams.clip}
    if config.history_length is not None:
        numbers["history_length"] = config.history_length
    return LEARNED_CLIPS[config.clip](
        component_fn=component_fn, keep_report=True, **numbers
    )
