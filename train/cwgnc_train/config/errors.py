"""User errors, and how their messages name things."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

# A mistyped name is compared with this many known ones.
_MOST_COMPARED = 1000
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


class UserError(Exception):
    """Something a user gave is wrong, or the machine cannot do what they asked for.

    The message says what was expected, what came, where, and how to fix it. Commands
    print it as one line; any other exception is a bug and keeps its traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ", did you mean 'x'?" for the nearest known name, or an empty string."""
    names = list(known)[:_MOST_COMPARED]
    near = difflib.get_close_matches(name, names, n=1)
    near = near or difflib.get_close_matches(name.lower(), names, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str]) -> str:
    """Quotes at most five names for a message, and counts the rest."""
    names = [f"{name!r:.60}" for name in names]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def shown(value: Any) -> str:
    """Shortens a wrong value for a message."""
    return "nothing" if value is None or value == "" else _SHORT.repr(value)
