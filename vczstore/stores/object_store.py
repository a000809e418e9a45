"""Object stores: what a URL names, and one spelling of the options that reach it, for obstore and for Icechunk.

Credentials are never options: obstore and Icechunk read them from the environment or the instance's role, wherever
a task runs, so that nothing that is pickled or shown holds any.
"""

import math
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, cast

from vczstore.errors import NotAStoreError, OptionError, StorageError, VczstoreError, missing_extra
from vczstore.stores.credentials import NO_CREDENTIALS, is_credential, is_credential_name
from vczstore.stores.locations import OBJECT_STORES, Address, literal, parse, real_path, split_glob

RETRIES = 8
"""How often a request is made again: after 429 and 5xx, after a reset connection, and after a timeout."""
BACKOFF = (0.1, 5.0)
"""The first and the longest pause before it, in seconds; they double in between."""
TIMEOUT = 30.0
"""How many seconds an object store may say nothing."""
PATIENCE = 90.0
"""After how many seconds a request is not made again."""
MAX_REQUEST = 300.0
"""How many seconds one request may take, however much it transfers."""

type Kind = Literal["s3", "gs", "az"]

EXTRAS: dict[Kind, str] = {"s3": "s3", "gs": "gcs", "az": "azure"}
"""The extra of this project that installs what a kind of object store needs."""

_SPELLINGS = {"endpoint_url": "endpoint", "skip_signature": "anonymous", "anon": "anonymous"}
"""What other tools call our options."""

_OPTIONS: dict[Kind, dict[str, type]] = {
    "s3": {"region": str, "endpoint": str, "anonymous": bool, "allow_http": bool, "requester_pays": bool},
    "gs": {"endpoint": str, "anonymous": bool, "allow_http": bool},
    "az": {"account": str, "endpoint": str, "anonymous": bool, "allow_http": bool},
}
_OBSTORE = {
    ("s3", "requester_pays"): "request_payer",
    ("gs", "endpoint"): "base_url",
    ("az", "account"): "account_name",
}
"""What obstore calls them, where that is not the same for all kinds."""
_ENDPOINTS: dict[Kind, tuple[str, ...]] = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Where the environment says it."""


@dataclass(frozen=True)
class Remote:
    """
    What is in an object store, and what reaches it.

    Attributes
    ----------
    address
        Where it is.
    options
        The options that reach it, in our own words.
    """

    address: Address
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, address: Address, options: Mapping[str, Any]) -> "Remote | None":
        """
        What is in an object store; None if an address is elsewhere.

        Raises
        ------
        OptionError
            If an option does not exist, has a value that it cannot have, or is a credential.

        >>> Remote.of(parse("s3://bucket/a.vcz"), {"endpoint_url": "http://host:9000"}).options
        {'endpoint': 'http://host:9000'}
        """
        refuse_credentials(address.url, options)
        if address.kind not in OBJECT_STORES:
            return None
        checked = _checked(address.url, cast("Kind", address.kind), options)
        if address.account is not None and checked.setdefault("account", address.account) != address.account:
            raise OptionError(
                f"{address.url}: is of the account {address.account}, not {checked['account']} as the storage "
                "option account has it; leave the option out"
            )
        return cls(address, checked)

    @property
    def kind(self) -> "Kind":
        """Whose it is."""
        return cast("Kind", self.address.kind)

    def obstore(self, patience: float) -> Any:
        """Open it with obstore; requests are made again for so many seconds."""
        stores = require("obstore.store", EXTRAS[self.kind])
        allow_http = self._allows_http
        config = {_OBSTORE.get((self.kind, name), name): value for name, value in self.options.items()}
        config.pop("allow_http", None)
        if "anonymous" in config:
            config["skip_signature"] = config.pop("anonymous")
        client = client_options() | ({} if allow_http is None else {"allow_http": allow_http})
        make = {"s3": stores.S3Store, "gs": stores.GCSStore, "az": stores.AzureStore}[self.kind]
        return make(
            self.address.root,
            prefix=self.address.key or None,
            client_options=client,
            retry_config=retry_config(patience),
            **config,
        )

    def icechunk(self) -> Any:
        """Icechunk's storage of it."""
        import icechunk

        bucket, prefix = self.address.root, self.address.key
        options = {"from_env": True, **self.options}
        if options.pop("anonymous", False):
            options.update(from_env=None, anonymous=True)
        allow_http, endpoint = self._allows_http, self._endpoint
        for name in ("allow_http", "endpoint"):
            options.pop(name, None)
        if self.kind == "s3":
            return icechunk.s3_storage(
                bucket=bucket,
                prefix=prefix,
                endpoint_url=endpoint,
                allow_http=bool(allow_http),
                # servers of one's own have no name for each bucket
                force_path_style=endpoint is not None,
                network_stream_timeout_seconds=math.ceil(TIMEOUT),
                **options,
            )
        config = {} if allow_http is None else {"allow_http": str(allow_http).lower()}
        if self.kind == "gs":
            config |= {"google_base_url": endpoint} if endpoint else {}
            return icechunk.gcs_storage(bucket=bucket, prefix=prefix, config=config or None, **options)
        config |= {"azure_storage_endpoint": endpoint} if endpoint else {}
        account = options.pop("account", None) or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise OptionError(
                f"{self.address.url}: names no account; give --storage-option account=NAME, "
                "or AZURE_STORAGE_ACCOUNT_NAME in the environment"
            )
        return icechunk.azure_storage(
            account=account, container=bucket, prefix=prefix, config=config or None, **options
        )

    @property
    def _allows_http(self) -> bool | None:
        """Who writes http:// means it."""
        said: bool | None = self.options.get("allow_http")
        return True if said is None and (self._endpoint or "").startswith("http://") else said

    @property
    def _endpoint(self) -> str | None:
        """The server, where it is not the provider's own."""
        said: str | None = self.options.get("endpoint")
        return said or next((os.environ[name] for name in _ENDPOINTS[self.kind] if os.environ.get(name)), None)


def _checked(url: str, kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    known, checked = _OPTIONS[kind], dict[str, Any]()
    for given, value in options.items():
        name = given.replace("-", "_")
        name = _SPELLINGS.get(name, name)
        if name not in known:
            raise OptionError(f"{url}: no storage option {given!r}; choose from {', '.join(known)}")
        if not isinstance(value, known[name]):
            wanted = "true or false" if known[name] is bool else "text"
            raise OptionError(f"{url}: the storage option {given} is {value!r}; it takes {wanted}")
        checked[name] = value
    return checked


def refuse_credentials(url: str, options: Mapping[str, Any]) -> None:
    """Raise an `OptionError` if an option is a credential; it does not say which. `parse` looks at URLs."""
    for name, value in options.items():
        if is_credential_name(name) or is_credential(str(value)):
            shown = "" if is_credential(name) else f" {name}"
            raise OptionError(f"{url}: the storage option{shown}: {NO_CREDENTIALS}")


def client_options() -> dict[str, Any]:
    """How long obstore waits for an answer."""
    wait = timedelta(seconds=TIMEOUT)
    return {"connect_timeout": wait, "read_timeout": wait, "timeout": timedelta(seconds=MAX_REQUEST)}


def retry_config(patience: float) -> dict[str, Any]:
    """How often obstore makes a request again."""
    first, longest = (timedelta(seconds=s) for s in BACKOFF)
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }


def object_store(where: str | Address, options: Mapping[str, Any], *, patience: float | None = None) -> Any:
    """
    Open what lies somewhere with obstore.

    Parameters
    ----------
    where, options
        Its URL, or the parts of it, and what reaches it.
    patience
        After how many seconds a request is not made again; `PATIENCE` by default.

    Raises
    ------
    OptionError
        If obstore does not take the URL or the options.
    MissingDependencyError
        If obstore is not installed.
    """
    patience = PATIENCE if patience is None else patience
    address = parse(where) if isinstance(where, str) else where
    try:
        remote = Remote.of(address, options)
        if remote is not None:
            return remote.obstore(patience)
        stores = require("obstore.store", "obstore")
        if address.path is not None:
            return stores.LocalStore(real_path(address.path))
        if address.kind == "http":
            web = client_options() | {"allow_http": address.root.startswith("http:")}
            config = {"client_options": web, "retry_config": retry_config(patience)}
            return stores.HTTPStore.from_url(address.url, **config, **dict(options))
        if address.kind == "memory":
            return stores.from_url(address.url, **dict(options))
        client, retry = client_options(), retry_config(patience)
        return stores.from_url(address.url, client_options=client, retry_config=retry, **dict(options))
    except VczstoreError:
        raise
    except Exception as error:  # obstore's own errors, whose classes differ by version
        raise OptionError(f"{address.url}: obstore cannot open it ({reason(error)})") from error


def put_conditionally(objects: Any, key: str, content: bytes, mode: Any, *, patience: float | None = None) -> Any:
    """
    Write an object on a condition, by obstore; None if that was not met.

    obstore does not repeat a conditional write whose answer was lost, since it may have taken effect. This does: if it
    has, the condition is not met by the second try, and the object that is there is the caller's own.

    Parameters
    ----------
    objects, key, content
        What obstore opened, the name of the object in it, and its bytes.
    mode
        The condition, as `obstore.put` takes it.
    patience
        After how many seconds it is not tried again; `PATIENCE` by default.
    """
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

    until, pause = time.monotonic() + (PATIENCE if patience is None else patience), BACKOFF[0]
    while True:
        try:
            return require("obstore", "obstore").put(objects, key, content, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            return None
        except GenericError as error:
            if not _may_pass(error) or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause = min(2 * pause, BACKOFF[1])


_PASSING = {"408", "429", "500", "502", "503", "504"}
"""Answers after which the same request may succeed. That conditional writes are not implemented, 501, is none."""


def _may_pass(error: Exception) -> bool:
    """Whether a server has not answered, or with an error that may pass."""
    status = re.search(r"status code: (\d{3})", str(error))
    return status is None or status[1] in _PASSING


def find(pattern: str, options: Mapping[str, Any], of_files: Collection[str] = ()) -> list[str] | None:
    """
    List what a glob in the last part of a URL finds, sorted: folders, since that is what stores are, and objects if
    the glob ends like one `of_files`.

    As in local globs, names that begin with a dot are left out. What is no such glob stands for itself. None if there
    is nothing at all where the glob looks: an object store has no folders that could be there and empty.
    """
    glob = split_glob(pattern)
    if glob is None:
        return [literal(pattern)]
    folder, matches = glob
    listed = require("obstore", "obstore").list_with_delimiter(object_store(folder, options))
    if not listed["common_prefixes"] and not listed["objects"]:
        return None
    found = [*listed["common_prefixes"]]
    if pattern.lower().endswith(tuple(of_files)):
        found += [one["path"] for one in listed["objects"]]
    names = sorted(name.rstrip("/").rpartition("/")[2] for name in found)
    return [folder.child(name).url for name in names if matches.match(name) and not name.startswith(".")]


def download(operation: str, url: str, options: Mapping[str, Any], target: "os.PathLike[str]") -> None:
    """
    Copy one object, or what is at a web address, to a file of this machine.

    Raises
    ------
    NotAStoreError
        If there is no such object.
    """
    address = parse(url)
    folder, _, name = address.key.rpartition("/")
    store = object_store(Address(address.kind, address.root, folder, address.account), options)
    try:
        found = require("obstore", "obstore").get(store, name)
    except FileNotFoundError as error:
        raise NotAStoreError(f"{operation}: {url}: no such object") from error
    with open(target, "wb") as file:
        for part in found.stream(min_chunk_size=8 * 2**20):
            file.write(part)


@contextmanager
def plain_errors(location: object) -> Iterator[None]:
    """Turn what obstore, Icechunk and the system say about storage into one line: a `StorageError`."""
    try:
        yield
    except (VczstoreError, KeyboardInterrupt):
        raise
    except Exception as error:
        if not is_of_storage(error):
            raise
        label = location if isinstance(location, str | os.PathLike) else f"<{type(location).__name__}>"
        raise StorageError(f"{label}: cannot be read ({reason(error)})") from error


def is_of_storage(error: BaseException) -> bool:
    """Whether an error is storage's, and not ours."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or not packages.isdisjoint({"icechunk", "obstore"})


def is_denied(error: BaseException) -> bool:
    """Whether storage says that something may not be read or written."""
    return is_of_storage(error) and _DENIED.search(f"{type(error).__name__} {error}") is not None


def reason(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[0]
    if any(host in text for host in _METADATA_SERVICES):
        return (
            "no credentials were found in the environment, and this machine has no role that gives any; set them (for "
            "S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or say --storage-option anonymous=true for public data"
        )
    if is_denied(error):
        rights = next((right for method, right in _RIGHTS.items() if f"performing {method}" in text), _TO_READ)
        return f"access denied; on S3 this takes {rights}: {text[:200]}"
    return text[:400]


_METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Where a machine in a cloud asks for the credentials of its role: who asks there has found no others."""

_DENIED = re.compile("PermissionDenied|AccessDenied|403 Forbidden")
_TO_READ = "s3:GetObject, and s3:ListBucket, without which an object that is not there is denied too"
_RIGHTS = {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}
"""Which right a request needs (Amazon S3 User Guide, Required permissions for Amazon S3 API operations)."""


def require(module: str, extra: str) -> Any:
    """
    Import an optional package.

    Raises
    ------
    MissingDependencyError
        With the line that installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise missing_extra(f"{package} is not installed", extra) from error
