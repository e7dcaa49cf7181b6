"""``cwgnc stability``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse, use_cache
from cwgnc_train.config import StabilityConfig, check_hosts


def stability(flags: Sequence[str]) -> int:
    """Makes the runs of a study."""
    config = parse("stability", StabilityConfig, flags)
    from cwgnc_train.engine import hosts
    from cwgnc_train.study import prepare_stability, run_study

    check_hosts(config.training.hosts)
    use_cache(config.training.cache)
    hosts.join(config.training.hosts)
    with hosts.together("start"):
        study = prepare_stability(config)
    run_study(study)
    if hosts.is_primary():
        print(f"records  {config.workdir / 'records.jsonl'}")
        print(f"next     cwgnc report {config.workdir}")
    return 0
