"""The errors that users may see: one line each, with the operation, the field, both values and the way out."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception of another library; of a line beyond 200 characters, whole sentences."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:200].rpartition(". ")[0] or f"{line[:197]}..."


class Interrupted(KeyboardInterrupt):
    """An operation was interrupted by the user. The message describes the state of the store."""


def words_of(error: BaseException) -> str:
    """Return the message of an error; "interrupted" if it is empty, as that of a plain `KeyboardInterrupt`."""
    return str(error) or "interrupted"


class VczstoreError(ValueError):
    """Base class of all errors raised by vczstore. Unless the message says otherwise, nothing was changed."""

    exit_status = 1
    """Exit status of the command line."""


class NotAStoreError(VczstoreError):
    """There is no VCZ at a location where one was expected."""


class DamagedStoreError(VczstoreError):
    """A VCZ is inconsistent, for instance in its number of samples, or has invalid metadata or chunks."""


class VcfError(VczstoreError):
    """A VCF or BCF file cannot be converted to a VCZ: it is in another format, truncated or broken."""


class IncompatibleError(VczstoreError):
    """A source is incompatible with the store: variants, fields, dtypes or dimensions differ."""


class SampleError(VczstoreError):
    """
    Sample IDs are unknown, duplicated or already present.

    Parameters
    ----------
    message
        The problem.
    hint
        A suggestion. It may have sample IDs of the store, so jobs do not log it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint = message, hint

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)


def with_words(error: VczstoreError, words: str = "", *, before: str = "") -> VczstoreError:
    """Return an error of the same class with text added before and after its message; the hint is kept."""
    if isinstance(error, SampleError):
        return type(error)(f"{before}{error.message}{words}", error.hint)
    return type(error)(f"{before}{error}{words}")


class OptionError(VczstoreError):
    """
    An option does not exist, or is incompatible with the others: wrong usage, for any store.

    As for click, the exit status is 2. An option that is wrong for this store only is an `UnsuitableError`.
    """

    exit_status = 2


class UnsuitableError(OptionError):
    """An option or a location is valid, but unsuitable for the existing store or storage."""

    exit_status = 1


class MissingDependencyError(VczstoreError):
    """An optional package is needed and not installed."""


def missing_extra(problem: object, extra: str) -> MissingDependencyError:
    """
    Return the error for a missing package that is in one of the project's extras.

    The name ``vczstore`` on PyPI belongs to another package, so the message advises to install from a clone.
    """
    return MissingDependencyError(f"{problem}; install it from a clone of vczstore: pip install '.[{extra}]'")


class MemoryLimitError(VczstoreError):
    """A task would need more memory than allowed."""

    needed = 0
    """Bytes of memory that the task needs, where known."""


class StaleError(VczstoreError):
    """The store has changed since a plan was compiled against it or while it ran, or the lock was lost."""

    exit_status = 4


class ConflictError(StaleError):
    """Another writer has committed since a plan was compiled. A retry from the current state may succeed."""


class TagError(VczstoreError):
    """A tag, branch or snapshot exists already, does not exist, or is not supported by the backend."""


class CheckError(VczstoreError):
    """A store does not satisfy a ``check``."""


class StorageError(VczstoreError):
    """A read or write of storage failed."""


class BusyError(VczstoreError):
    """Another process holds the lock of the store, or a purge or gc of it is in progress."""

    exit_status = 3


class JobFileError(VczstoreError):
    """A job file, or a file that it refers to, is invalid."""

    exit_status = 2
