"""Errors of executors, and the quoting of errors of their libraries."""


class ExecutorOptionError(ValueError):
    """There is no executor of that name, it has no such option, or it cannot run a plan with these options."""


class MissingEngineError(ImportError):
    """
    The library of an executor is not installed.

    Attributes
    ----------
    extra
        The extra of this project that installs it; None if there is none.
    """

    def __init__(self, message: str, *, extra: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an exception; the name of its class if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
