"""The errors a user can meet: one line each, naming operation, field, both values and the way out."""


def first_line(error: BaseException) -> str:
    """What an exception of another library says, for the end of a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


class Interrupted(KeyboardInterrupt):
    """The user has stopped an operation. The message says what state the store is in."""


def words_of(error: BaseException) -> str:
    """What an error says; a plain interrupt says nothing by itself."""
    return str(error) or "interrupted"


class VczstoreError(ValueError):
    """Base of every error that vczstore raises on purpose. Nothing has been changed when it is raised."""

    exit_status = 1
    """What the command line exits with."""


class NotAStoreError(VczstoreError):
    """There is no VCZ where one was expected."""


class DamagedStoreError(VczstoreError):
    """A VCZ contradicts itself, for instance in its number of samples."""


class VcfError(VczstoreError):
    """A VCF or BCF file cannot be converted to a VCZ: it is no such file, truncated, or broken."""


class IncompatibleError(VczstoreError):
    """A source does not fit the store: variants, fields, dtypes or dimensions differ."""


class SampleError(VczstoreError):
    """
    Sample IDs are unknown, duplicated or already present.

    Parameters
    ----------
    message
        What is wrong.
    hint
        What may be meant. It names samples of the store for who asked for others, and is left out of what jobs log.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint = message, hint

    def __reduce__(self) -> tuple[type["SampleError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)


def with_words(error: VczstoreError, words: str = "", *, before: str = "") -> VczstoreError:
    """An error of the same class that says more; hints of samples stay hints."""
    if isinstance(error, SampleError):
        return type(error)(f"{before}{error.message}{words}", error.hint)
    return type(error)(f"{before}{error}{words}")


class OptionError(VczstoreError):
    """
    An option does not exist, or does not fit the others: wrong usage, for any store.

    As for click, the exit status is 2. What depends on what is there is an `UnsuitableError`.
    """

    exit_status = 2


class UnsuitableError(OptionError):
    """An option, or a place, that would be right elsewhere does not suit what is there."""

    exit_status = 1


class MissingDependencyError(VczstoreError):
    """An optional package is needed and not installed."""


def missing_extra(problem: object, extra: str) -> MissingDependencyError:
    """
    Return the error for a package that is not installed, and that one of the project's extras has.

    The name ``vczstore`` on PyPI is that of another package, so the way out is a clone of this one.
    """
    return MissingDependencyError(f"{problem}; install it from a clone of vczstore: pip install '.[{extra}]'")


class MemoryLimitError(VczstoreError):
    """A task would need more memory than it is allowed."""


class StaleError(VczstoreError):
    """The store has changed since a plan was compiled against it, or while it ran."""

    exit_status = 4


class ConflictError(StaleError):
    """Another writer has committed since a plan was compiled. A plan against the present may still succeed."""


class TagError(VczstoreError):
    """A tag exists already, does not exist, or cannot exist on this backend."""


class CheckError(VczstoreError):
    """A store is not as a check of a job asks for."""


class StorageError(VczstoreError):
    """Storage refused to read or write."""


class BusyError(VczstoreError):
    """Another job holds the lock of the store."""

    exit_status = 3


class JobFileError(VczstoreError):
    """A job file, or a file that it names, does not say what it should."""

    exit_status = 2
