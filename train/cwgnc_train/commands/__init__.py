"""The commands, and what all of them do: find one, run it, report errors."""

import errno
import logging
import sys
from collections.abc import Sequence

from cwgnc_train.commands.huge_pages import use_huge_pages
from cwgnc_train.config import UserError, suggest

__all__ = ("COMMANDS", "run", "use_huge_pages")

COMMANDS = {
    "finetune": "fine-tune a pretrained encoder on a task or on your own data",
    "predict": "predict with a fine-tuned model",
    "components": "list what the clip of a model treats as one, with shapes and sizes",
    "stability": "fine-tune with many seeds, thresholds and methods",
    "report": "tables, tests and figures of such a study",
    "racing": "how the components of its runs converge, failed and successful",
    "unfreeze": "what gradual unfreezing did in it, iteration by iteration",
    "plan": "what a command would need on a GPU or TPU that is not here",
    "reproduce": "the paper's tables and figures, cut to a budget of minutes",
}
"""Each is a function of :mod:`cwgnc_train.commands.entry_points`."""

_LONGEST_MESSAGE = 2000


def run(arguments: Sequence[str]) -> int:
    """Runs the command and its flags that are given; returns the exit status.

    It is 0; 1 if all runs were given up; 2 if the input was wrong or nothing could be
    written; 130 or 143 after SIGINT or SIGTERM. A bug raises.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: cwgnc COMMAND [--help]\n\ncommands:")
        for name, what in COMMANDS.items():
            print(f"  {name:{max(map(len, COMMANDS))}}  {what}")
        print("\nshell completion: cwgnc COMMAND --tyro-print-completion bash")
        return 0 if arguments else 2
    name, *flags = arguments
    if name not in COMMANDS:
        return _refuse(
            f"unknown command {name!r}{suggest(name, COMMANDS) or ';'} "
            f"the commands are {' '.join(COMMANDS)}"
        )
    # What Orbax's threads raise is raised by its callers as well.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Only now, since the process may have been started anew: see use_huge_pages.
    from cwgnc_train.commands import entry_points

    try:
        return entry_points.start(name, flags)
    except (UserError, OSError) as error:
        return _refuse(error)
    except KeyboardInterrupt as stop:
        # Of the engine, after a checkpoint, or of Python itself before the first step.
        why = str(stop) or "interrupted"
        print(f"{why}; the same command with --resume goes on", file=sys.stderr)
        return getattr(stop, "status", 130)


def _refuse(error: object) -> int:
    # Names from files may hold anything, such as what moves a terminal's cursor.
    line = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(str(error).split())
    )
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[:_LONGEST_MESSAGE]}…"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        line += "; make room: what was written is whole, and --resume goes on from it"
    print(f"error: {line}", file=sys.stderr)
    return 2
