"""``cwgnc report``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse
from cwgnc_train.config import ReportConfig


def report(flags: Sequence[str]) -> int:
    """Writes a study's report."""
    config = parse("report", ReportConfig, flags)
    from cwgnc_train.analysis import write_report

    page = write_report(config.workdir, config.output, config.legacy_lines)
    print(f"report  {page}")
    return 0
