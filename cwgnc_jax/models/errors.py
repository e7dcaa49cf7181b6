"""The error that a bad checkpoint raises."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of no use here.

    Raised by :func:`load_pretrained` and :func:`resolve` for whatever is wrong with a
    model's name, files, config or weights. The message says what was expected, what was
    found, where, and how to mend it. Errors of the operating system, such as a file
    without read permission, stay :class:`OSError`.
    """
