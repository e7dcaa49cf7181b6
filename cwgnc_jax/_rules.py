"""Rules whose patterns are regular expressions; the first that matches wins."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

from cwgnc_jax._messages import listed, nearest


class FirstMatch:
    """Finds the first rule that matches a name, and reports rules that do not fit.

    Args:
      rules: The rules; the first element of each is its pattern.
      kind: What error messages call a rule, such as "component rule".
      thing: What a rule decides about, such as "parameter".
      key: The name that a pattern must match, such as "path".
      last: The source of a rule that matches everything else.
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
        """Finds the first rule that matches the whole name: its index and the match."""
        for i, pattern in enumerate(self._patterns):
            if match := pattern.fullmatch(name):
                return i, match
        return None

    def cover(self, names: Iterable[str]) -> list[tuple[int, re.Match[str]]]:
        """Finds the rule of each name; raises if a name has none."""
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
        """Raises if a rule is the first match of none of the names.

        Args:
          names: All names that the rules could match; at least one.
          decided: Those of them that the rules decide about; by default all.
        """
        decided = names if decided is None else decided
        used = {found[0] for name in decided if (found := self.find(name))}
        for i, (rule, pattern) in enumerate(
            zip(self._rules, self._patterns, strict=True)
        ):
            if i in used:
                continue
            if any(pattern.fullmatch(name) for name in names):
                raise ValueError(
                    f"The {self._kind} {tuple(rule)!r} has no effect: an earlier rule "
                    f"matches every {self._key} that it matches. Move it up or drop it."
                )
            near = nearest(pattern.pattern, names, cutoff=0)
            raise ValueError(
                f"The {self._kind} {tuple(rule)!r} matches no {self._thing}. A rule "
                f"must match the whole {self._key}; the nearest one is {near!r}."
            )


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Says whether this is a list or a tuple, as rules and each of them may be."""
    return isinstance(value, (tuple, list))


def compiled(pattern: str) -> re.Pattern[str]:
    """Compiles a regular expression; the error for an invalid one quotes it."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{pattern!r} is not a valid regular expression: {error}"
        ) from error
