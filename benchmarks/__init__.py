"""Comparisons with the torch version and with the peers."""

import os

# On a GPU JAX would take most of the memory, and torch beside it would have the rest.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
