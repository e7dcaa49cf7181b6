"""Where the torch sides run: on the GPU if there is one, as JAX does."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
    """Waits until the device has done what it was told to."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
