"""Tasks, files, tokens, order, packing: from texts to the batch of (seed, step)."""

from cwgnc_train.data.examples import (
    Examples,
    is_label,
    load_examples,
    load_split,
    read_file,
)
from cwgnc_train.data.gather import TokenTable, join_tables, packed_batch, token_table
from cwgnc_train.data.order import batch_examples, steps_per_epoch
from cwgnc_train.data.packing import (
    BatchIndices,
    Packing,
    Shape,
    evaluation_batches,
    make_packing,
)
from cwgnc_train.data.tasks import (
    GLUE,
    Task,
    collapsed,
    find_task,
    has_failed,
    majority_line,
    own_task,
    score,
)
from cwgnc_train.data.token_cache import CachedTokenizer
from cwgnc_train.data.tokens import (
    TokenArrays,
    check_length,
    check_tokens,
    load_tokenizer,
    pad_tokens,
    tokenize,
)

__all__ = (
    "GLUE",
    "BatchIndices",
    "CachedTokenizer",
    "Examples",
    "Packing",
    "Shape",
    "Task",
    "TokenArrays",
    "TokenTable",
    "batch_examples",
    "check_length",
    "check_tokens",
    "collapsed",
    "evaluation_batches",
    "find_task",
    "has_failed",
    "is_label",
    "join_tables",
    "load_examples",
    "load_split",
    "load_tokenizer",
    "majority_line",
    "make_packing",
    "own_task",
    "pad_tokens",
    "packed_batch",
    "read_file",
    "score",
    "steps_per_epoch",
    "token_table",
    "tokenize",
)
