"""Where a store lies: the one place where a path or URL is taken apart, and put together again.

The key of an object is opaque: in ``s3://bucket/cohort#2`` it is ``cohort#2``, and ``%20`` is three characters. Only
``file://`` and ``https://`` are addresses in which characters are percent-encoded (RFC 3986, section 2; RFC 8089).
"""

import os
import re
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes

from vczstore.errors import OptionError
from vczstore.stores.credentials import NO_CREDENTIALS, is_credential

OBJECT_STORES = ("s3", "gs", "az")
"""The kinds of place whose objects have keys, and may be listed and written to."""

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
"""What is left of a URL that was taken for a path."""
_LITERAL = re.compile(r"\[([*?[{])\]")
"""How a character is written that is no glob."""


@dataclass(frozen=True)
class Address:
    """
    What a path or URL names. Two of them are equal if they name the same place.

    Attributes
    ----------
    kind
        ``file`` on this machine; ``s3``, ``gs`` or ``az``; ``http``, which can only be read; else the URL's scheme.
    root
        The bucket, on Azure the container; the host, with ``http://`` before it; nothing on this machine.
    key
        What the names of all objects begin with, without a slash around it; on this machine, the path; else what
        follows the scheme, as it was written.
    account
        On Azure, whose the container is, if the URL says so.
    """

    kind: str
    root: str
    key: str
    account: str | None = None

    @property
    def path(self) -> Path | None:
        """The path, None if it is elsewhere."""
        return Path(self.key) if self.kind == "file" else None

    @property
    def url(self) -> str:
        """A path or URL that names it. `parse` gives the same address for it."""
        if self.kind == "file":
            # a relative path may look like a URL
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
        Whether it lies in another place, and is not that place itself.

        >>> parse("s3://bucket/a/b").is_in(parse("s3://bucket/a")), parse("s3://bucket/ab").is_in(parse("s3://bucket/a"))
        (True, False)
        """
        is_same = self.account is None or other.account is None or self.account == other.account
        above = other.key.rstrip("/")
        begins = self.key.startswith(f"{above}/") if above or self.kind == "file" else bool(self.key)
        return is_same and (self.kind, self.root) == (other.kind, other.root) and begins and self.key != other.key

    @property
    def above(self) -> "list[Address]":
        """The places that it lies in, the innermost first; none of a kind of place that is not known."""
        if self.path is not None:
            return [Address("file", "", str(path)) for path in self.path.parents]
        parts = self.key.split("/") if self.kind in OBJECT_STORES and self.key else []
        return [Address(self.kind, self.root, "/".join(parts[:n]), self.account) for n in reversed(range(len(parts)))]

    def child(self, name: str) -> "Address":
        """What has this name in it."""
        key = quote(name) if self.kind == "http" else name
        return Address(self.kind, self.root, f"{self.key}/{key}" if self.key else key, self.account)


def parse(location: str | os.PathLike[str]) -> Address:
    """
    Say what a path or URL names.

    Parameters
    ----------
    location
        A path; ``file://``; ``s3://BUCKET/KEY``; ``gs://BUCKET/KEY``; ``az://``, ``azure://``, ``abfs://`` or
        ``abfss://`` with ``CONTAINER/KEY`` or ``CONTAINER@ACCOUNT.dfs.core.windows.net/KEY``;
        ``https://ACCOUNT.blob.core.windows.net/CONTAINER/KEY``; another ``http(s)://``; a URL of some other scheme.

    Raises
    ------
    OptionError
        If it names nothing, or what no backend can reach under this name.

    >>> parse("s3://bucket/cohort#2")
    Address(kind='s3', root='bucket', key='cohort#2', account=None)
    >>> parse("file:///data/a%20b.vcz").path
    PosixPath('/data/a b.vcz')
    """
    text = os.fspath(location)
    found = _URL.match(text)
    if found is None:
        return _parse_path(text)
    scheme, rest = found[1].lower(), found[2]
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
        raise OptionError(f"{text!r} is no path; name a path or a URL")
    if _COLLAPSED.match(text):
        raise OptionError(f"{text}: a URL has two slashes after the colon; give it as text, a path has only one")
    return Address("file", "", text)


def _parse_file(text: str, rest: str) -> Address:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise OptionError(f"{text}: names no path on this machine; a file URL has three slashes, as in file:///data")
    decoded = os.fsdecode(_decoded(text, path))
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
            key = _decoded(text, key).decode()
        except UnicodeDecodeError as error:
            raise OptionError(f"{text}: is not UTF-8") from error
        return _in_object_store(text, "az", container, key, azure[1].lower())
    return Address("http", f"{scheme}://{host}", path.rstrip("/"))


def _decoded(text: str, path: str) -> bytes:
    """Percent-decoded; a ``%`` that begins no two digits stands for itself, as in browsers (WHATWG URL)."""
    return unquote_to_bytes(os.fsencode(path))


def _account(text: str, host: str) -> str:
    found = _AZURE_HOST.fullmatch(host)
    if found is None:
        raise OptionError(f"{text}: what follows @ is no ACCOUNT.dfs.core.windows.net")
    return found[1].lower()


def _in_object_store(text: str, kind: str, root: str, key: str, account: str | None) -> Address:
    what = "container" if kind == "az" else "bucket"
    if not root:
        raise OptionError(f"{text}: names no {what}; put it after the //")
    if not _BUCKET.fullmatch(root):
        raise OptionError(
            f"{text}: {root!r} is no name of a {what}; a server is named by --storage-option endpoint=URL"
        )
    key = key.removesuffix("/")
    if key and any(part in ("", ".", "..") for part in key.split("/")):
        raise OptionError(f"{text}: keys with //, /./ or /../ are out of reach; write the key as it is, without them")
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
    The local path that a URL or path stands for, None if it is elsewhere.

    >>> local_path("file:///data/a.vcz"), local_path("s3://bucket/a.vcz")
    (PosixPath('/data/a.vcz'), None)
    """
    return parse(location).path


def folder_of(location: object) -> Path | None:
    """The folder of this machine that a user calls a store by, links resolved; None if it is none."""
    path = local_path(location) if isinstance(location, str | os.PathLike) else None
    return None if path is None else real_path(path)


def real_path(path: Path) -> Path:
    """A path without links; those that lead to themselves stay, for which pathlib has an error that is no `OSError`."""
    return Path(os.path.realpath(path))


def scheme(location: object) -> str | None:
    """
    What kind of place elsewhere a URL names; None for this machine, and for what is open already.

    >>> scheme("s3://bucket/a"), scheme("https://me.blob.core.windows.net/c/a"), scheme("a.vcz")
    ('s3', 'az', None)
    """
    if not isinstance(location, str | os.PathLike):
        return None
    kind = parse(location).kind
    return None if kind == "file" else kind


def is_url(text: str) -> bool:
    """Whether a text is a URL, and no path."""
    return _URL.match(text) is not None


# ---- globs ----------------------------------------------------------------------------------


def alternatives(pattern: str) -> list[str]:
    """
    The patterns that one with braces stands for, as in a shell; ``[{]`` is a brace, and so is one around no comma.

    >>> alternatives("inbox/*.{vcz,vcf.gz}"), alternatives("{a}[{]b,c}")
    (['inbox/*.vcz', 'inbox/*.vcf.gz'], ['{a}[{]b,c}'])
    """
    found = re.search(r"(?<!\[)\{([^{},]*(?:,[^{},]*)+)\}", pattern)  # the innermost first
    if found is None:
        return [pattern]
    begin, end = pattern[: found.start()], pattern[found.end() :]
    made = [one for middle in found[1].split(",") for one in alternatives(f"{begin}{middle}{end}")]
    return list(dict.fromkeys(made))


def is_glob(pattern: str) -> bool:
    """Whether ``*``, ``?`` or ``[`` in a text stands for other characters; ``[*]``, ``[?]`` and ``[[]`` do not."""
    return re.search(r"[*?[]", _LITERAL.sub("", pattern)) is not None


def literal(pattern: str) -> str:
    """
    What a text that is no glob stands for.

    >>> literal("s3://bucket/what[?]")
    's3://bucket/what?'
    """
    return _LITERAL.sub(r"\1", pattern)


def split_glob(url: str) -> tuple[Address, re.Pattern[str]] | None:
    """
    The folder of an object store in which a glob looks for names, and what these match.

    None where there is nothing to look for: the last part of the URL is no glob, or it is elsewhere.
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
