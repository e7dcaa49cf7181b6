"""The components of a model, before anything is trained."""

import jax

import cwgnc_jax
from cwgnc_jax import models
from train.config import ComponentsConfig
from train.optimizer import COMPONENT_FNS


def list_components(config: ComponentsConfig) -> cwgnc_jax.ComponentTable:
    """Reads a model and assigns its parameters to components.

    Args:
      config: The model and what is clipped as one.

    Returns:
      A row for each component; a table when printed.

    Raises:
      ValueError: If the weights are wrong.
      OSError: If a file is missing or a hub cannot be reached.
    """
    checkpoint = models.load_pretrained(
        config.model,
        num_labels=config.num_labels,
        key=jax.random.key(0),
        new_head=True,
        revision=config.revision,
    )
    return cwgnc_jax.explain(checkpoint.params, COMPONENT_FNS[config.components])
