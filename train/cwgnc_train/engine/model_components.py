"""The components of a model, before anything is trained."""

import cwgnc_jax
from cwgnc_train.config import ComponentsConfig
from cwgnc_train.engine.inputs import load_weights
from cwgnc_train.engine.optimizer import COMPONENT_FNS


def list_components(config: ComponentsConfig) -> cwgnc_jax.ComponentTable:
    """Reads a model and assigns its parameters to components.

    Args:
      config: The model and what is clipped together.

    Returns:
      A row for each component; a table when printed.

    Raises:
      UserError: If the weights are missing or wrong.
      OSError: If a hub cannot be reached.
    """
    checkpoint = load_weights(
        config.model, config.num_labels, new_head=True, revision=config.revision
    )
    return cwgnc_jax.explain(checkpoint.params, COMPONENT_FNS[config.components])
