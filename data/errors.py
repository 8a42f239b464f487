"""Errors that a user can fix. A bug raises something else.

A message says what is wrong, where (path, row, name), and what to do about it. The command line prints it as one
line and exits with 1.
"""


class KnobctlError(Exception):
    """Base of all errors that a user can fix in data, names or files."""


class UnknownSetting(KnobctlError):
    """A knob value or combination outside the knob space. The nearest one is never used instead."""


class DatasetError(KnobctlError):
    """A dataset with a file, column, row, image or answers that cannot be read."""


class CacheError(KnobctlError):
    """A cache that is missing, incomplete, damaged, of another version, or in use."""


class CacheMismatch(CacheError):
    """A cache, controllers, model or encoder that do not belong together. The message names both."""


class CheckpointError(KnobctlError):
    """Weights or a config that cannot be read or is not supported. The message names the tensor or field."""


class ImportanceError(KnobctlError):
    """Importance scores that are malformed or do not fit the model."""


class ResultsError(KnobctlError):
    """A results directory, written by another program, that cannot be imported."""


class BudgetUnmet(KnobctlError):
    """No setting is expected to answer the request within its latency budget, and the caller asked to refuse then."""
