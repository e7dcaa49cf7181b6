"""``cwgnc predict``."""

from collections.abc import Sequence

from cwgnc_train.commands.flags import parse, print_scores, use_cache
from cwgnc_train.config import PredictConfig, check_predict


def predict(flags: Sequence[str]) -> int:
    """Writes predictions and prints their scores."""
    config = parse("predict", PredictConfig, flags)
    check_predict(config)
    from cwgnc_train.engine import predict as write_predictions

    use_cache(config.cache)
    scores, lines = write_predictions(config)
    print_scores(scores, lines)
    print(f"predictions  {config.output}")
    return 0
