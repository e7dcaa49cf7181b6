"""Rules by regular expressions of which the first that matches wins."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any


class FirstMatch:
    """The patterns of some rules, and what is said when they do not fit.

    Args:
      rules: The rules; the first element of each is its pattern.
      kind: What a rule is called, such as "component rule".
      thing: What a rule decides about, such as "parameter".
      key: What it matches, such as "path".
      last: A rule that would cover all the rest, as it is written.
    """

    def __init__(
        self,
        rules: Sequence[tuple[str, Any]],
        *,
        kind: str,
        thing: str,
        key: str,
        last: str,
    ):
        self._rules, self._last = rules, last
        self._kind, self._thing, self._key = kind, thing, key
        self._patterns = [compiled(pattern) for pattern, _ in rules]

    def find(self, name: str) -> tuple[int, re.Match[str]] | None:
        """The number of the first rule that matches the whole name, and the match."""
        for i, pattern in enumerate(self._patterns):
            if match := pattern.fullmatch(name):
                return i, match
        return None

    def cover(self, names: Iterable[str]) -> list[tuple[int, re.Match[str]]]:
        """Finds the rule of each name; raises if one is left without."""
        found = [(name, self.find(name)) for name in names]
        missed = [name for name, match in found if match is None]
        if missed:
            raise ValueError(
                f"No {self._kind} covers {listed(missed)}. Add a rule that matches the "
                f"whole {self._key}, for instance {self._last} as the last one."
            )
        return [match for _, match in found if match]

    def check_all_used(
        self, names: Sequence[str], decided: Sequence[str] | None = None
    ) -> None:
        """Raises if a rule is the first match of no name, or of no decided one."""
        decided = names if decided is None else decided
        used = {found[0] for name in decided if (found := self.find(name))}
        for i, (rule, pattern) in enumerate(
            zip(self._rules, self._patterns, strict=True)
        ):
            if i in used:
                continue
            if any(pattern.fullmatch(name) for name in names):
                raise ValueError(
                    f"The {self._kind} {tuple(rule)!r} decides nothing: an earlier "
                    f"rule matches all its {self._key}s first. Move it up or drop it."
                )
            nearest = difflib.get_close_matches(pattern.pattern, names, 1, cutoff=0)[0]
            raise ValueError(
                f"The {self._kind} {tuple(rule)!r} matches no {self._thing}. A rule "
                f"must match the whole {self._key}; the nearest one is {nearest!r}."
            )


def compiled(pattern: str) -> re.Pattern[str]:
    """Compiles a regular expression, or says that it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Spells at most ``limit`` names, and says how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
