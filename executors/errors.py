"""What executors raise, and how what their libraries raise is quoted."""


class ExecutorOptionError(ValueError):
    """There is no executor of that name, it has no such option, or it cannot run a plan with these options."""


class MissingEngineError(ImportError):
    """
    The library of an executor is not installed.

    Attributes
    ----------
    extra
        The name of the optional dependencies that have it, None if it is in none of them.
    """

    def __init__(self, message: str, *, extra: str | None = None) -> None:
        super().__init__(message)
        self.extra = extra


def first_line(error: BaseException) -> str:
    """What an exception of an executor's library says, for the end of a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
