"""Object stores: opened by obstore or Icechunk from one set of storage options.

Credentials are never options: obstore and Icechunk read them from the environment or the instance's role wherever
a task runs, so that they are never pickled or shown.
"""

import math
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, cast

from vczstore.errors import NotAStoreError, OptionError, StorageError, VczstoreError, missing_extra
from vczstore.stores.credentials import NO_CREDENTIALS, is_credential, is_credential_name
from vczstore.stores.locations import OBJECT_STORES, Address, literal, parse, real_path, split_glob

RETRIES = 8
"""Retries of a request after status 429 or 5xx, a connection reset or a timeout."""
BACKOFF = (0.1, 5.0)
"""Shortest and longest backoff before a retry, in seconds; it doubles from one to the other."""
TIMEOUT = 30.0
"""Seconds without any data after which a request times out."""
PATIENCE = 90.0
"""Seconds after which a request is no longer retried."""
MAX_REQUEST = 300.0
"""Seconds that one request may take, however much data it transfers."""

type Kind = Literal["s3", "gs", "az"]

EXTRAS: dict[Kind, str] = {"s3": "s3", "gs": "gcs", "az": "azure"}
"""The extra of this package that installs the dependencies of each kind of object store."""

_SPELLINGS = {"endpoint_url": "endpoint", "skip_signature": "anonymous", "anon": "anonymous"}
"""Our option names, by the names in other tools."""

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
"""obstore's option names where they differ, by kind and our name."""
_ENDPOINTS: dict[Kind, tuple[str, ...]] = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Environment variables that set the endpoint, in order of precedence."""


@dataclass(frozen=True)
class Remote:
    """
    An object-store location, and the options to open it.

    Attributes
    ----------
    address
        Location of the objects.
    options
        Storage options, by our names.
    """

    address: Address
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, address: Address, options: Mapping[str, Any]) -> "Remote | None":
        """
        Return the remote location of an address; None if it is not in an object store.

        Raises
        ------
        OptionError
            If an option is unknown, has an invalid value, or is a credential.

        >>> Remote.of(parse("s3://bucket/a.vcz"), {"endpoint_url": "http://host:9000"}).options
        {'endpoint': 'http://host:9000'}
        """
        refuse_credentials(address.url, options)
        if address.kind not in OBJECT_STORES:
            return None
        checked = _checked(address.url, cast("Kind", address.kind), options)
        if address.account is not None and checked.setdefault("account", address.account) != address.account:
            raise OptionError(
                f"{address.url}: is of the account {address.account}, not {checked['account']} as in the storage "
                "option account; leave the option out"
            )
        return cls(address, checked)

    @property
    def kind(self) -> "Kind":
        """The kind of object store."""
        return cast("Kind", self.address.kind)

    def obstore(self, patience: float) -> Any:
        """Return obstore's store for the location; requests are retried for `patience` seconds."""
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
        """Return an `icechunk.Storage` for the location."""
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
                # self-hosted servers usually have no hostname per bucket
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
        """Whether plain HTTP is allowed: by option, else if the endpoint begins with http://; None if unset."""
        allowed: bool | None = self.options.get("allow_http")
        return True if allowed is None and (self._endpoint or "").startswith("http://") else allowed

    @property
    def _endpoint(self) -> str | None:
        """URL of the server from an option or the environment; None for the provider's own."""
        endpoint: str | None = self.options.get("endpoint")
        return endpoint or next((os.environ[name] for name in _ENDPOINTS[self.kind] if os.environ.get(name)), None)


def _checked(url: str, kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    types, checked = _OPTIONS[kind], dict[str, Any]()
    for option, value in options.items():
        name = option.replace("-", "_")
        name = _SPELLINGS.get(name, name)
        if name not in types:
            raise OptionError(f"{url}: no storage option {option!r}; choose from {', '.join(types)}")
        if not isinstance(value, types[name]):
            wanted = "true or false" if types[name] is bool else "text"
            raise OptionError(f"{url}: the storage option {option} is {value!r}; it takes {wanted}")
        checked[name] = value
    return checked


def refuse_credentials(url: str, options: Mapping[str, Any]) -> None:
    """Raise an `OptionError` if an option is a credential, without quoting its value. `parse` checks URLs."""
    for name, value in options.items():
        if is_credential_name(name) or is_credential(str(value)):
            shown = "" if is_credential(name) else f" {name}"
            raise OptionError(f"{url}: the storage option{shown}: {NO_CREDENTIALS}")


def client_options() -> dict[str, Any]:
    """Return the ``client_options`` of obstore's stores: timeouts."""
    wait = timedelta(seconds=TIMEOUT)
    return {"connect_timeout": wait, "read_timeout": wait, "timeout": timedelta(seconds=MAX_REQUEST)}


def retry_config(patience: float) -> dict[str, Any]:
    """Return the ``retry_config`` of obstore's stores, with no retries after `patience` seconds."""
    first, longest = (timedelta(seconds=s) for s in BACKOFF)
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2},
    }


def object_store(where: str | Address, options: Mapping[str, Any], *, patience: float | None = None) -> Any:
    """
    Open a location with obstore.

    Parameters
    ----------
    where, options
        Its URL or address, and its storage options.
    patience
        Seconds after which a request is no longer retried; `PATIENCE` by default.

    Raises
    ------
    OptionError
        If the URL or the options are not valid for obstore.
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
    Write an object on a condition, with obstore; return None if the condition was not met.

    obstore does not retry a conditional write whose response was lost, since it may have taken effect. This function
    does: if it has, the condition of the second attempt is not met, since the object is the caller's own.

    Parameters
    ----------
    objects, key, content
        Store opened by obstore, key of the object in it, and its content.
    mode
        The condition, as the `mode` of `obstore.put`.
    patience
        Seconds after which the write is no longer retried; `PATIENCE` by default.
    """
    from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

    until, pause = time.monotonic() + (PATIENCE if patience is None else patience), BACKOFF[0]
    while True:
        try:
            return require("obstore", "obstore").put(objects, key, content, mode=mode)
        except (AlreadyExistsError, PreconditionError):
            return None
        except GenericError as error:
            status = re.search(r"status code: (\d{3})", str(error))  # none if the server did not respond
            if (status is not None and status[1] not in _TRANSIENT) or time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause = min(2 * pause, BACKOFF[1])


_TRANSIENT = {"408", "429", "500", "502", "503", "504"}
"""Transient status codes. Not 501: conditional writes are not implemented."""


def find(pattern: str, options: Mapping[str, Any], suffixes: Collection[str] = ()) -> list[str] | None:
    """
    Return the URLs that match a glob in the last part of a URL, sorted.

    They are those of folders, and those of objects if the glob ends with one of the suffixes. As in local globs, names
    that begin with a dot are left out. For a URL without such a glob, return that URL. Return None if the folder of the
    glob contains nothing at all: object stores have no empty folders.
    """
    glob = split_glob(pattern)
    if glob is None:
        return [literal(pattern)]
    folder, matches = glob
    listed = require("obstore", "obstore").list_with_delimiter(object_store(folder, options))
    if not listed["common_prefixes"] and not listed["objects"]:
        return None
    paths = [*listed["common_prefixes"]]
    if pattern.lower().endswith(tuple(suffixes)):
        paths += [entry["path"] for entry in listed["objects"]]
    names = sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
    return [folder.child(name).url for name in names if matches.match(name) and not name.startswith(".")]


def open_folder_of(address: Address, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Open the folder of an object with obstore; return it, and the name of the object in it."""
    folder, _, name = address.key.rpartition("/")
    return object_store(replace(address, key=folder), options), name


def download(operation: str, url: str, options: Mapping[str, Any], target: "os.PathLike[str]") -> None:
    """
    Download an object, or the content at a web address, to a local file.

    Raises
    ------
    NotAStoreError
        If there is no such object.
    """
    try:
        result = require("obstore", "obstore").get(*open_folder_of(parse(url), options))
    except FileNotFoundError as error:
        raise NotAStoreError(f"{operation}: {url}: no such object") from error
    with open(target, "wb") as file:
        for part in result.stream(min_chunk_size=8 * 2**20):
            file.write(part)


@contextmanager
def plain_errors(location: object) -> Iterator[None]:
    """Convert errors of obstore, Icechunk and the operating system to a one-line `StorageError`."""
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
    """Whether an error comes from storage: the operating system, icechunk or obstore."""
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return isinstance(error, OSError) or not packages.isdisjoint({"icechunk", "obstore"})


def is_denied(error: BaseException) -> bool:
    """Whether an error means that storage denied access."""
    return is_of_storage(error) and _DENIED.search(f"{type(error).__name__} {error}") is not None


def reason(error: BaseException) -> str:
    """Return the message of an error as one line of limited length, with advice for common causes."""
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
"""Endpoints for the credentials of a cloud machine's role, which are tried when there are no other credentials."""

_DENIED = re.compile("PermissionDenied|AccessDenied|403 Forbidden")
_TO_READ = "s3:GetObject, and s3:ListBucket, without which an object that is not there is denied too"
_RIGHTS = {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}
"""Permissions by HTTP method (Amazon S3 User Guide, Required permissions for Amazon S3 API operations)."""


def require(module: str, extra: str) -> Any:
    """
    Import an optional package.

    Raises
    ------
    MissingDependencyError
        If it is not installed; the message has the command that installs it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise missing_extra(f"{package} is not installed", extra) from error
