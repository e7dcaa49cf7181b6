"""The optimizer of the paper in one line."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._adam import scale_by_adam
from cwgnc_jax._clipping import component_clip_by_global_norm
from cwgnc_jax._components import ComponentFn, by_parameter
from cwgnc_jax._thresholds import MaxNorm
from cwgnc_jax._tree_paths import flatten_with_paths


def cwgnc_adamw(
    learning_rate: optax.ScalarOrSchedule,
    max_norm: MaxNorm = 0.05,
    component_fn: ComponentFn = by_parameter,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    bias_correction: ArrayLike = True,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """AdamW behind the component-wise clip, as the paper fine-tunes BERT.

    The chain is :func:`component_clip_by_global_norm`, :func:`scale_by_adam`, decoupled
    weight decay of all but biases and normalisation layers (see :func:`decay_mask`),
    and the learning rate.

    Args:
      learning_rate: A number, or a schedule of the step.
      max_norm: The clip's threshold; the paper's is 0.05. ``inf`` for no clip; see
        :func:`component_clip_by_global_norm` for schedules and rules.
      component_fn: Maps a path to its component's name; see
        :func:`component_clip_by_global_norm`.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
      eps: Adam's eps, in the placement of :func:`scale_by_adam`.
      bias_correction: Adam's bias correction; off is the BERT Adam of Devlin et al.
      weight_decay: Times the learning rate, the part of a parameter taken away each
        step. It acts on the parameter before the step; the torch version's acts on
        the one after it, a difference of the order of the learning rate squared.

    Returns:
      An :class:`optax.GradientTransformation`; its ``update`` needs ``params``.

    Raises:
      TypeError: If an argument is of the wrong kind.
      ValueError: If a number lies outside its range.

    Examples:
      >>> import cwgnc_jax
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.ones(2)}
      >>> def loss_fn(params):
      ...     return jnp.sum((params["kernel"] @ params["bias"] - 1.0) ** 2)
      >>> tx = cwgnc_jax.cwgnc_adamw(learning_rate=0.1)
      >>> opt_state = tx.init(params)
      >>> for _ in range(100):
      ...     grads = jax.grad(loss_fn)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss_fn(params) < 0.01)
      True

    References:
      Yang and Ma, `Improving Stability of Fine-Tuning Pretrained Language Models via
      Component-Wise Gradient Norm Clipping
      <https://aclanthology.org/2022.emnlp-main.322>`_, 2022, section 4 and appendix B
    """
    return optax.chain(
        component_clip_by_global_norm(max_norm, component_fn),
        scale_by_adam(b1, b2, eps, bias_correction=bias_correction),
        optax.add_decayed_weights(weight_decay, decay_mask),  # type: ignore
        optax.scale_by_learning_rate(learning_rate),
    )


def decay_mask(params: Any) -> Any:
    """Marks the parameters that weight decay acts on.

    These are the arrays of two dimensions or more whose name is neither ``bias`` nor
    ``scale``: the kernels and embeddings, and neither biases nor normalisation layers.

    Args:
      params: A parameter tree.

    Returns:
      The tree with True in the place of each decayed parameter and False elsewhere.

    Examples:
      >>> import cwgnc_jax
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> cwgnc_jax.decay_mask(params)
      {'bias': False, 'kernel': True}
    """
    paths, leaves, treedef = flatten_with_paths(params)
    return jax.tree.unflatten(
        treedef,
        [
            jnp.ndim(leaf) > 1 and path.rpartition("/")[2] not in ("bias", "scale")
            for path, leaf in zip(paths, leaves, strict=True)
        ],
    )
