"""Names for what others put together: the paper's optimizer, an early clip."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from cwgnc_jax._adam import scale_by_adam
from cwgnc_jax._clipping import component_clip_by_global_norm
from cwgnc_jax._components import ComponentFn
from cwgnc_jax._prior_decay import add_decayed_weights_towards
from cwgnc_jax._thresholds import MaxNorm
from cwgnc_jax._tree_paths import flatten_with_paths


def cwgnc_adamw(
    learning_rate: optax.ScalarOrSchedule,
    max_norm: MaxNorm = 0.05,
    component_fn: ComponentFn | None = None,
    *,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    bias_correction: ArrayLike = True,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """Makes the paper's optimizer for BERT: the component-wise clip, then AdamW.

    The chain is :func:`component_clip_by_global_norm`, :func:`scale_by_adam`, decoupled
    weight decay of all parameters but biases and normalisation layers (see
    :func:`decay_mask`), and the learning rate.

    Args:
      learning_rate: A number, or a schedule of the step.
      max_norm: The clip's threshold, 0.05 in the paper; ``inf`` for no clip. See
        :func:`component_clip_by_global_norm` for schedules and rules.
      component_fn: Maps a path to its component's name; None is :func:`by_parameter`.
      b1: Decay of Adam's first moment.
      b2: Decay of Adam's second moment.
      eps: Adam's eps, placed as in :func:`scale_by_adam`.
      bias_correction: Whether Adam corrects the bias of its moments; without it this is
        the BERT Adam of Devlin et al.
      weight_decay: Each step subtracts this share, times the learning rate, of the
        parameter before the step. The torch version subtracts it of the parameter after
        the step; the difference is of the order of the learning rate squared.

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
        add_decayed_weights_towards(None, weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def bertadam_clip(max_norm: MaxNorm = 1.0) -> optax.GradientTransformation:
    r"""Clips each parameter as the first PyTorch code for BERT did, at norm 1.

    The ``BertAdam`` of pytorch-pretrained-bert, with which many early results on BERT
    were obtained, gives every parameter to torch's ``clip_grad_norm_`` on its own:

    .. math::
      \hat g = \min\left(1, \frac{\text{max\_norm}}{\|g\| + 10^{-6}}\right) g

    That is the rule of Yang and Ma, four years earlier and with a threshold of 1 in
    place of 0.05, though it was meant to clip the global norm. Here it is another name
    for :func:`component_clip_by_global_norm`.

    Args:
      max_norm: The largest norm that a parameter may keep; ``inf`` is the code's -1.
        See :func:`component_clip_by_global_norm` for schedules and rules.

    Returns:
      An :class:`optax.GradientTransformation`.

    Raises:
      TypeError: If ``max_norm`` is of the wrong kind.
      ValueError: If ``max_norm`` is not positive.

    Examples:
      The whole of that optimizer, but for the schedule:

      >>> import cwgnc_jax
      >>> import optax
      >>> tx = optax.chain(
      ...     cwgnc_jax.bertadam_clip(),
      ...     cwgnc_jax.scale_by_adam(eps=1e-6, bias_correction=False),
      ...     optax.add_decayed_weights(0.01, cwgnc_jax.decay_mask),
      ...     optax.scale_by_learning_rate(2e-5),
      ... )

    References:
      ``pytorch_pretrained_bert/optimization.py``, 2018 to 2019, and
      https://github.com/huggingface/transformers/issues/581 on what it clips
    """
    return component_clip_by_global_norm(max_norm)


def decay_mask(params: Any) -> Any:
    """Marks the parameters on which weight decay acts.

    These are the arrays of two or more dimensions whose name is neither ``bias`` nor
    ``scale``: kernels and embeddings, but not biases and normalisation layers.

    Args:
      params: A parameter tree.

    Returns:
      A tree with True for each parameter that decays and False for the others.

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
