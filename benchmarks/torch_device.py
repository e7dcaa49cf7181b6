"""Where the torch sides run: on the GPU if there is one, as JAX does."""

from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def placed(model: torch.nn.Module) -> Any:
    """The model, on the device; the types of transformers' own ``to`` are wrong."""
    return model.to(DEVICE)


def wait() -> None:
    """Waits until the device has done what it was told to."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
