"""Names of parameters, and their counterparts in Hugging Face's checkpoints."""

import re
from collections.abc import Mapping

from cwgnc_jax._messages import listed
from cwgnc_jax.models.encoders import Encoder

_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def to_checkpoint(path: str) -> str:
    """Translates a parameter's path into its name in a checkpoint.

    ``kernel``, ``embedding`` and ``scale`` are all called ``weight`` there, and a
    kernel is stored transposed, (out, in).

    Args:
      path: A "/"-joined path.

    Returns:
      The name in Hugging Face's model for sequence classification.

    Examples:
      >>> from cwgnc_jax.models.names import to_checkpoint
      >>> to_checkpoint("bert/embeddings/LayerNorm/scale")
      'bert.embeddings.LayerNorm.weight'
    """
    module, _, leaf = path.rpartition("/")
    leaf = "bias" if leaf == "bias" else "weight"
    return f"{module}/{leaf}".replace("/", ".")


def canonical_name(name: str, encoder: Encoder) -> str | None:
    """Reduces the different spellings of a tensor's name to one.

    Checkpoints of an encoder alone omit the encoder's name, and those converted from
    TensorFlow call the parameters of LayerNorm ``gamma`` and ``beta``.

    Args:
      name: A tensor's name in a checkpoint.
      encoder: The type of the model.

    Returns:
      The name in Hugging Face's model for sequence classification, or None for known
      tensors that it does not use: pretraining heads and the buffer of position ids.

    Examples:
      >>> from cwgnc_jax.models.encoders import ENCODERS
      >>> from cwgnc_jax.models.names import canonical_name
      >>> canonical_name("embeddings.LayerNorm.gamma", ENCODERS["bert"])
      'bert.embeddings.LayerNorm.weight'
    """
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    if name.startswith(tuple(f"{part}." for part in encoder.parts)):
        name = f"{encoder.base}.{name}"
    buffer = f"{encoder.base}.embeddings.position_ids"
    return None if name == buffer or re.fullmatch(encoder.unused, name) else name


def describe_differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    """Describes names that are missing, unexpected or of another shape.

    Args:
      expected: Shapes by name.
      found: Shapes by name.

    Returns:
      One line with at most five names for each kind of difference; "" if there are no
      differences.

    Examples:
      >>> from cwgnc_jax.models.names import describe_differences
      >>> describe_differences({"a": (2,), "b": ()}, {"a": (3,), "c": ()})
      'missing b; unexpected c; other shape a: expected (2,), got (3,)'
    """
    kinds = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "other shape": [
            f"{name}: expected {shape}, got {found[name]}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    return "; ".join(
        f"{kind} {listed(names, spell=str)}" for kind, names in kinds.items() if names
    )
