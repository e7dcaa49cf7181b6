"""Component-wise gradient norm clipping for Optax."""

from cwgnc_jax._adam import scale_by_adam
from cwgnc_jax._alias import cwgnc_adamw, decay_mask
from cwgnc_jax._clipping import component_clip_by_global_norm, component_norms
from cwgnc_jax._components import (
    ComponentFn,
    by_layer,
    by_module,
    by_parameter,
    by_rules,
    component_sizes,
)

__version__ = "0.1.0"

__all__ = (
    "ComponentFn",
    "by_layer",
    "by_module",
    "by_parameter",
    "by_rules",
    "component_clip_by_global_norm",
    "component_norms",
    "component_sizes",
    "cwgnc_adamw",
    "decay_mask",
    "scale_by_adam",
)
