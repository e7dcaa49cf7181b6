"""Names in error messages."""

import difflib
from collections.abc import Callable, Iterable


def listed(
    names: Iterable[str], limit: int = 5, spell: Callable[[str], str] = repr
) -> str:
    """Joins at most ``limit`` names, and says how many more there are.

    Args:
      names: Any strings.
      limit: How many of them are spelled out.
      spell: Writes one name; quoted by default.

    Returns:
      A part of a sentence.

    Examples:
      >>> from cwgnc_jax._messages import listed
      >>> listed(["a", "b", "c"], limit=2)
      "'a', 'b' and 1 more"
    """
    names = list(names)
    shown = ", ".join(spell(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown


def nearest(name: str, known: Iterable[str], cutoff: float) -> str | None:
    """Finds the known name that is most like this one.

    Args:
      name: What was written.
      known: What could have been meant.
      cutoff: How alike the two must be, from 0, which accepts any, to 1.

    Returns:
      The known name, or None if none is alike enough.

    Examples:
      >>> from cwgnc_jax._messages import nearest
      >>> nearest("bart", ["bert", "electra"], 0.7)
      'bert'
    """
    near = difflib.get_close_matches(name, list(known), 1, cutoff=cutoff)
    return near[0] if near else None
