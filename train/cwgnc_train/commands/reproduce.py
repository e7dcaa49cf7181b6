"""``cwgnc reproduce``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse, use_cache
from cwgnc_train.config import ReproduceConfig, check_hosts


def reproduce(flags: Sequence[str]) -> int:
    """Makes the runs of the paper, cut to a budget, and their report."""
    config = parse("reproduce", ReproduceConfig, flags)
    from cwgnc_train.analysis import write_report
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import prepare_reproduction, run_study

    check_hosts(config.training.hosts)
    use_cache(config.training.cache)
    hosts.join(config.training.hosts)
    study, cuts = prepare_reproduction(config)
    if hosts.is_primary():
        left_out = "; ".join(cuts) or "nothing"
        print(f"{len(study.runs)} runs; cut from the paper's protocol: {left_out}")
    run_study(study)
    if hosts.is_primary():
        print(f"report  {write_report(config.workdir)}")
    return 0
