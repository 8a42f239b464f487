"""What a user can put right. Everything else is a bug and may raise what it likes.

A message says what is wrong, where (path, row, name), and what to do about it. The command line prints it as one
line and exits with 1.
"""


class KnobctlError(Exception):
    """Base of all errors that a user can mend in data, names or files."""


class UnknownSetting(KnobctlError):
    """A knob value or combination outside the knob space. Never replaced by the nearest one."""


class DatasetError(KnobctlError):
    """A dataset that cannot be read: file, column, row, image or answers."""


class CacheError(KnobctlError):
    """A cache that is absent, half-written, damaged, of another version, or in use."""


class CacheMismatch(CacheError):
    """Two things that do not belong together: cache, controllers, model, encoder. The message names both."""


class CheckpointError(KnobctlError):
    """Weights or a config that cannot be read or are not supported. The message names the tensor or field."""


class ImportanceError(KnobctlError):
    """Importance scores that cannot be right for this model."""


class ResultsError(KnobctlError):
    """A results directory of another program that cannot be imported."""
