"""Errors that end in one line: what is wrong, where, and what to do."""


class LrcError(ValueError):
    """Base of every error raised on purpose by this package."""


class TraceError(LrcError):
    """A trace, or a file that should hold one, is not valid."""


class RecordError(LrcError):
    """Routing of a model cannot be recorded, or was not recorded completely."""


class ModelError(LrcError):
    """A model is unknown, out of reach, incomplete, or not one to record."""
