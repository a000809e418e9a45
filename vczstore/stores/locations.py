"""Locations of stores: the only module that parses and composes paths and URLs.

Object keys are opaque: in ``s3://bucket/cohort#2`` the key is ``cohort#2``, and ``%20`` is three characters. Only
``file://`` and ``https://`` URLs are percent-encoded (RFC 3986, section 2; RFC 8089).
"""

import os
import re
from dataclasses import dataclass, replace
from fnmatch import translate
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes

from vczstore.errors import OptionError
from vczstore.stores.credentials import NO_CREDENTIALS, is_credential

OBJECT_STORES = ("s3", "gs", "az")
"""Kinds of locations that have object keys, and can be listed and written."""

_KINDS = {
    "file": "file",
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "azure", "abfs", "abfss"), "az"),
    **dict.fromkeys(("http", "https"), "http"),
}
_AZURE_HOST = re.compile(r"([a-z0-9-]+)\.(?:blob|dfs)\.core\.windows\.net", re.IGNORECASE)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]*")
_COLLAPSED = re.compile(r"(s3a?|gc?s|az|azure|abfss?|https?):/(?!/)", re.IGNORECASE)
"""A URL that was normalised as a path, and so lost a slash."""
_LITERAL = re.compile(r"\[([*?[{])\]")
"""A glob character that is escaped by brackets."""


@dataclass(frozen=True)
class Address:
    """
    The location that a path or URL names. Equal addresses are the same location.

    Attributes
    ----------
    kind
        ``file`` (local), ``s3``, ``gs``, ``az``, ``http`` (read-only), or else the URL's scheme.
    root
        Bucket, container on Azure, or host with its scheme; empty for local paths and other schemes.
    key
        Key prefix of the objects, without leading or trailing slash; for ``file`` the path; for other schemes the part
        after ``://``, verbatim.
    account
        Storage account of an Azure container, if the URL names it.
    """

    kind: str
    root: str
    key: str
    account: str | None = None

    @property
    def path(self) -> Path | None:
        """The local path; None for other kinds."""
        return Path(self.key) if self.kind == "file" else None

    @property
    def url(self) -> str:
        """A path or URL of the address, which `parse` maps to an equal address."""
        if self.kind == "file":
            # ./ keeps a relative path from being parsed as a URL
            return self.key if _URL.match(self.key) is None else f"./{self.key}"
        if self.kind == "http":
            return "/".join(part for part in (self.root, self.key) if part)
        if self.kind not in OBJECT_STORES:
            return f"{self.kind}://{self.key}"
        if self.account is not None:
            key = quote(self.key, safe="/")
            return f"https://{self.account}.blob.core.windows.net/{self.root}{f'/{key}' if key else ''}"
        return f"{self.kind}://{self.root}{f'/{self.key}' if self.key else ''}"

    def is_in(self, other: "Address") -> bool:
        """
        Whether it lies strictly inside another location.

        >>> parse("s3://bucket/a/b").is_in(parse("s3://bucket/a")), parse("s3://bucket/ab").is_in(parse("s3://bucket/a"))
        (True, False)
        """
        is_same = self.account is None or other.account is None or self.account == other.account
        above = other.key.rstrip("/")
        begins = self.key.startswith(f"{above}/") if above or self.kind == "file" else bool(self.key)
        return is_same and (self.kind, self.root) == (other.kind, other.root) and begins and self.key != other.key

    @property
    def above(self) -> "list[Address]":
        """The locations that contain this one, innermost first; empty for ``http`` and unknown schemes."""
        if self.path is not None:
            return [Address("file", "", str(path)) for path in self.path.parents]
        parts = self.key.split("/") if self.kind in OBJECT_STORES and self.key else []
        return [replace(self, key="/".join(parts[:n])) for n in reversed(range(len(parts)))]

    def child(self, name: str) -> "Address":
        """The location of a member."""
        key = quote(name) if self.kind == "http" else name
        return replace(self, key=f"{self.key}/{key}" if self.key else key)


def parse(location: str | os.PathLike[str]) -> Address:
    """
    Parse a path or URL.

    Parameters
    ----------
    location
        A path; ``file://``; ``s3://BUCKET/KEY``; ``gs://BUCKET/KEY``; ``az://``, ``azure://``, ``abfs://`` or
        ``abfss://`` with ``CONTAINER/KEY`` or ``CONTAINER@ACCOUNT.dfs.core.windows.net/KEY``;
        ``https://ACCOUNT.blob.core.windows.net/CONTAINER/KEY``; another ``http(s)://``; a URL of some other scheme.

    Raises
    ------
    OptionError
        If it is malformed, contains credentials, or uses a form that no backend can open.

    >>> parse("s3://bucket/cohort#2")
    Address(kind='s3', root='bucket', key='cohort#2', account=None)
    >>> parse("file:///data/a%20b.vcz").path
    PosixPath('/data/a b.vcz')
    """
    text = os.fspath(location)
    url = _URL.match(text)
    if url is None:
        return _parse_path(text)
    scheme, rest = url[1].lower(), url[2]
    if scheme != "file" and is_credential(text):
        raise OptionError(f"{_without_credentials(text)}: {NO_CREDENTIALS}")
    match _KINDS.get(scheme, scheme):
        case "file":
            return _parse_file(text, rest)
        case "http":
            return _parse_web(text, scheme, rest)
        case "s3" | "gs" | "az" as kind:
            root, _, key = rest.partition("/")
            account = None
            if kind == "az" and "@" in root:
                root, _, host = root.partition("@")
                account = _account(text, host)
            return _in_object_store(text, kind, root, key, account)
        case other:
            return Address(other, "", rest)


def _parse_path(text: str) -> Address:
    if not text or "\0" in text:
        raise OptionError(f"{text!r} is not a path; name a path or a URL")
    if _COLLAPSED.match(text):
        raise OptionError(f"{text}: a URL has two slashes after the colon; give it as text, a path has only one")
    return Address("file", "", text)


def _parse_file(text: str, rest: str) -> Address:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise OptionError(f"{text}: names no path on this machine; a file URL has three slashes, as in file:///data")
    decoded = os.fsdecode(_decoded(path))
    if "\0" in decoded:
        raise OptionError(f"{text}: names no path")
    return Address("file", "", f"/{decoded}")


def _parse_web(text: str, scheme: str, rest: str) -> Address:
    if extra := re.search("[?#]", rest):
        raise OptionError(
            f"{text}: the address of a store ends before {extra[0]!r}; in a name write %{ord(extra[0]):02X}"
        )
    host, _, path = rest.partition("/")
    if not host:
        raise OptionError(f"{text}: names no host")
    if scheme == "https" and (azure := _AZURE_HOST.fullmatch(host)):
        container, _, key = path.partition("/")
        try:
            key = _decoded(key).decode()
        except UnicodeDecodeError as error:
            raise OptionError(f"{text}: is not UTF-8") from error
        return _in_object_store(text, "az", container, key, azure[1].lower())
    return Address("http", f"{scheme}://{host}", path.rstrip("/"))


def _decoded(path: str) -> bytes:
    """Percent-decode; a ``%`` not followed by two hexadecimal digits is kept, as in browsers (WHATWG URL)."""
    return unquote_to_bytes(os.fsencode(path))


def _account(text: str, host: str) -> str:
    azure = _AZURE_HOST.fullmatch(host)
    if azure is None:
        raise OptionError(f"{text}: what follows @ is not ACCOUNT.dfs.core.windows.net")
    return azure[1].lower()


def _in_object_store(text: str, kind: str, root: str, key: str, account: str | None) -> Address:
    what = "container" if kind == "az" else "bucket"
    if not root:
        raise OptionError(f"{text}: names no {what}; put it after the //")
    if not _BUCKET.fullmatch(root):
        raise OptionError(f"{text}: {root!r} is not a {what} name; a server is named by --storage-option endpoint=URL")
    key = key.removesuffix("/")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise OptionError(f"{text}: keys with //, /./ or /../ are not supported; write the key without them")
    if not _is_key(key):
        raise OptionError(f"{text!r}: a key has no control characters, and is UTF-8")
    return Address(kind, root, key, account)


def _is_key(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return re.search(r"[\x00-\x1f\x7f]", key) is None


def _without_credentials(text: str) -> str:
    rest = text.partition("?")[0].rpartition("@")[2]
    return "a URL" if is_credential(rest) else f"the URL of {rest}"


# ---- shorthands -----------------------------------------------------------------------------


def local_path(location: str | os.PathLike[str]) -> Path | None:
    """
    Return the local path of a URL or path; None if it is not local.

    >>> local_path("file:///data/a.vcz"), local_path("s3://bucket/a.vcz")
    (PosixPath('/data/a.vcz'), None)
    """
    return parse(location).path


def folder_of(location: object) -> Path | None:
    """The local folder of a user's location, symlinks resolved; None if it is not local."""
    path = local_path(location) if isinstance(location, str | os.PathLike) else None
    return None if path is None else real_path(path)


def real_path(path: Path) -> Path:
    """Resolve symlinks. Those that form a loop stay, for which pathlib raises an error that is no `OSError`."""
    return Path(os.path.realpath(path))


def canonical(location: str) -> str:
    """Return the path or URL that all spellings of a location have in common; symlinks are resolved."""
    address = parse(location)
    return address.url if address.path is None else str(real_path(address.path))


def scheme(location: object) -> str | None:
    """
    Return the kind of a remote location; None for local ones and open stores.

    >>> scheme("s3://bucket/a"), scheme("https://me.blob.core.windows.net/c/a"), scheme("a.vcz")
    ('s3', 'az', None)
    """
    if not isinstance(location, str | os.PathLike):
        return None
    kind = parse(location).kind
    return None if kind == "file" else kind


def is_url(text: str) -> bool:
    """Whether a text is a URL rather than a path."""
    return _URL.match(text) is not None


# ---- globs ----------------------------------------------------------------------------------


def alternatives(pattern: str) -> list[str]:
    """
    Expand braces in a pattern, as a shell does; ``[{]`` is a literal brace, and so are braces around no comma.

    >>> alternatives("inbox/*.{vcz,vcf.gz}"), alternatives("{a}[{]b,c}")
    (['inbox/*.vcz', 'inbox/*.vcf.gz'], ['{a}[{]b,c}'])
    """
    braces = re.search(r"(?<!\[)\{([^{},]*(?:,[^{},]*)+)\}", pattern)  # the innermost first
    if braces is None:
        return [pattern]
    begin, end = pattern[: braces.start()], pattern[braces.end() :]
    patterns = [expanded for middle in braces[1].split(",") for expanded in alternatives(f"{begin}{middle}{end}")]
    return list(dict.fromkeys(patterns))


def is_glob(pattern: str) -> bool:
    """Whether a text has glob characters ``*``, ``?`` or ``[``, apart from ``[*]``, ``[?]`` and ``[[]``."""
    return re.search(r"[*?[]", _LITERAL.sub("", pattern)) is not None


def literal(pattern: str) -> str:
    """
    Remove the brackets that escape glob characters.

    >>> literal("s3://bucket/what[?]")
    's3://bucket/what?'
    """
    return _LITERAL.sub(r"\1", pattern)


def split_glob(url: str) -> tuple[Address, re.Pattern[str]] | None:
    """
    Split a glob URL into the object-store folder to list, and a regular expression for the names in it.

    None unless the last part alone is a glob, without character classes, and the URL is in an object store.
    """
    folder, _, pattern = url.rpartition("/")
    if not is_url(url) or not is_glob(pattern) or is_glob(folder) or "[" in _LITERAL.sub("", pattern):
        return None
    address = parse(literal(folder))
    if address.kind not in OBJECT_STORES:
        return None
    if address.account is not None:
        pattern = unquote(pattern)
    return address, re.compile(translate(pattern))
