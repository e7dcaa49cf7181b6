"""``cwgnc components``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse
from cwgnc_train.config import ComponentsConfig, check_numbers


def components(flags: Sequence[str]) -> int:
    """Prints a model's components."""
    config = parse("components", ComponentsConfig, flags)
    check_numbers(config)
    from cwgnc_train.engine import list_components

    print(list_components(config))
    return 0
