"""The command line: ``cwgnc COMMAND``, or ``python -m cwgnc_train COMMAND``."""

import sys


def main() -> None:
    """Runs the command that the process was started with."""
    from cwgnc_train.commands import run, use_huge_pages

    # Before JAX is imported, which the process that is started anew does again.
    use_huge_pages()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
