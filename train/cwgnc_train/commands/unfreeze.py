"""``cwgnc unfreeze``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse
from cwgnc_train.config import UnfreezeConfig


def unfreeze(flags: Sequence[str]) -> int:
    """Draws a study's gradual unfreezing."""
    config = parse("unfreeze", UnfreezeConfig, flags)
    from cwgnc_train.analysis import write_unfreezing

    print(*write_unfreezing(config.workdir, config.output), sep="\n")
    return 0
