"""What a device does for itself when several share a step, and what together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax


class Sharing(NamedTuple):
    """How devices share the steps of a run: each has its examples of every batch.

    Attributes:
      axis_name: Of the devices, within ``jax.shard_map`` or ``jax.pmap``.
      split: By a parameter's "/"-joined path the axis along which it is split over the
        devices, its moments too. Those that are not named are whole on each.
    """

    axis_name: str
    split: Mapping[str, int]

    @property
    def norms_axis(self) -> str | None:
        """Over which axis squared norms must be summed; None if leaves are whole."""
        return self.axis_name if self.split else None

    def whole(self, params: Any) -> Any:
        """Gathers what is split. Its gradients are summed and split in turn."""

        def gathered(path, leaf):
            axis = self.split.get(_joined(path))
            if axis is None:
                return leaf
            return jax.lax.all_gather(leaf, self.axis_name, axis=axis, tiled=True)

        return jax.tree_util.tree_map_with_path(gathered, params)

    def own(self, params: Any) -> Any:
        """Parameters whose gradients are those of this device's examples only.

        Of parameters that are whole the gradients would be summed at each use.
        """

        def varying(path, leaf):
            if _joined(path) in self.split:
                return leaf
            return jax.lax.pcast(leaf, self.axis_name, to="varying")

        return jax.tree_util.tree_map_with_path(varying, params)

    def summed(self, loss: jax.Array, grads: Any) -> tuple[jax.Array, Any]:
        """Sums what :meth:`whole` has not summed already, by one collective."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(grads)
        local = {i: x for i, (p, x) in enumerate(paths) if _joined(p) not in self.split}
        loss, local = jax.lax.psum((loss, local), self.axis_name)
        leaves = [local.get(i, leaf) for i, (_, leaf) in enumerate(paths)]
        return loss, jax.tree.unflatten(treedef, leaves)


def _joined(key_path: Any) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
