"""Component-wise gradient norm clipping for Optax."""

from cwgnc_jax._adam import scale_by_adam
from cwgnc_jax._adaptive import adagc, aggc, olmo_clip
from cwgnc_jax._alias import bertadam_clip, cwgnc_adamw, decay_mask
from cwgnc_jax._assignment import component_sizes
from cwgnc_jax._clipping import component_clip_by_global_norm
from cwgnc_jax._components import (
    ComponentFn,
    by_layer,
    by_module,
    by_module_type,
    by_parameter,
    by_rules,
)
from cwgnc_jax._depth import DepthFn, encoder_depth, thawed
from cwgnc_jax._explain import ComponentRow, ComponentTable, explain
from cwgnc_jax._layer_decay import scale_by_layer_decay
from cwgnc_jax._mixout import mixout
from cwgnc_jax._norms import component_norms
from cwgnc_jax._outliers import autoclip, zclip
from cwgnc_jax._prior_decay import add_decayed_weights_towards
from cwgnc_jax._report import ClipReport, clip_report
from cwgnc_jax._spikes import scale_by_spam, spike_skip
from cwgnc_jax._thresholds import per_element, relative_to_params
from cwgnc_jax._tree_paths import flatten_with_paths
from cwgnc_jax._unfreezing import gradual_unfreezing

__version__ = "0.1.0"

__all__ = (
    "ClipReport",
    "ComponentFn",
    "ComponentRow",
    "ComponentTable",
    "DepthFn",
    "adagc",
    "add_decayed_weights_towards",
    "aggc",
    "autoclip",
    "bertadam_clip",
    "by_layer",
    "by_module",
    "by_module_type",
    "by_parameter",
    "by_rules",
    "clip_report",
    "component_clip_by_global_norm",
    "component_norms",
    "component_sizes",
    "cwgnc_adamw",
    "decay_mask",
    "encoder_depth",
    "explain",
    "flatten_with_paths",
    "gradual_unfreezing",
    "mixout",
    "olmo_clip",
    "per_element",
    "relative_to_params",
    "scale_by_adam",
    "scale_by_layer_decay",
    "scale_by_spam",
    "spike_skip",
    "thawed",
    "zclip",
)
