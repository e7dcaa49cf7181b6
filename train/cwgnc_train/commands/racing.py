"""``cwgnc racing``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse
from cwgnc_train.config import RacingConfig


def racing(flags: Sequence[str]) -> int:
    """Draws the race of a study's components."""
    config = parse("racing", RacingConfig, flags)
    from cwgnc_train.analysis import write_racing

    print(*write_racing(config.workdir, config.output), sep="\n")
    return 0
