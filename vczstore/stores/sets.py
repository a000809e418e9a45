"""Sets of stores: templates with ``{part}``, and the record of changes that are about to become visible in all parts.

The record is a small file in the folder above the first ``{part}``. It is written when all parts are ready, and deleted
when all are done, so that after an interrupted run the next one knows which parts are missing. It contains no sample
IDs, only digests of them that are slow to compute.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vczstore.errors import DamagedStoreError, NotAStoreError, OptionError, StorageError
from vczstore.stores.filesystem import write_durably
from vczstore.stores.locations import OBJECT_STORES, Address, is_url, parse, real_path
from vczstore.stores.object_store import find, is_of_storage, object_store, reason, require

PART = "{part}"
"""Placeholder of a template for the name of a part."""

RECORD = ".vczstore-set.json"
"""Suffix of the names of records."""


def is_template(location: object) -> bool:
    """Whether a user's location names a set of stores."""
    return isinstance(location, str | os.PathLike) and PART in os.fspath(location)


@dataclass(frozen=True)
class Template:
    """
    A path or URL with ``{part}`` in it.

    Attributes
    ----------
    text
        The path or URL, verbatim.
    options
        Storage options with which it is opened.
    """

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, part: str) -> str:
        """Path or URL of one part."""
        return self.text.replace(PART, part)

    def find(self, suffixes: Sequence[str] = ()) -> list[str]:
        """
        Names of the existing parts, in natural order.

        Parameters
        ----------
        suffixes
            Suffixes of files that are parts, in addition to ``.zip``.

        Raises
        ------
        OptionError
            If the parts cannot be listed: a remote template not in an object store, or whose parts differ in more
            than the last name.
        NotAStoreError
            If a matching path is a dangling symlink, such as one to a disk that is not mounted.
        """
        folder, names = self._split
        if groups := self._groups():
            paths = [f"{names.rpartition('#')[0]}#{group}" for group in groups]
        elif folder.path is not None:
            self._refuse_dead_links(folder.path, names)
            paths = glob.glob("*".join(map(glob.escape, names.split(PART))), root_dir=folder.path)
            files = (".zip", *suffixes)  # other files may be beside stores, such as withdrawal keys
            paths = [name for name in paths if (folder.path / name).is_dir() or name.lower().endswith(files)]
        elif folder.kind not in OBJECT_STORES or "/" in names:
            raise OptionError(
                f"{self.text}: parts are listed only in object stores, by the last name of the URL; name them with "
                "--parts (parts: in a job)"
            )
        else:
            pattern = "*".join(re.sub(r"([*?[])", r"[\1]", piece) for piece in names.split(PART))
            pattern = pattern if folder.account is None else quote(pattern, safe="*")
            places = find(f"{folder.url}/{pattern}", self.options, suffixes) or []
            paths = [parse(place).key.rpartition("/")[2] for place in places]
        matches = (self._match(name) for name in paths)
        return sorted({match["part"] for match in matches if match}, key=_natural)

    def _refuse_dead_links(self, folder: Path, names: str) -> None:
        """Raise a `NotAStoreError` if a match, or a folder above one, is a dangling symlink."""
        levels = names.split("/")
        for i in range(len(levels)):
            above = "/".join(levels[: i + 1])
            for name in sorted(glob.glob("*".join(map(glob.escape, above.split(PART))), root_dir=folder)):
                link = folder / name
                if link.is_symlink() and not link.exists() and self._match(name, above):
                    raise NotAStoreError(
                        f"{self.text}: {link} is a link to {link.readlink()}, which is not there; mend it, or name the "
                        "parts with --parts (parts: in a job)"
                    )

    def _match(self, name: str, names: str | None = None) -> re.Match[str] | None:
        """Match a path relative to the set's folder; the group ``part`` is the name of the part."""
        first, *others = (re.escape(piece) for piece in (names or self._split[1]).split(PART))
        return re.fullmatch(f"{first}(?P<part>[^/]+){'(?P=part)'.join(others)}", name)

    def takes(self, text: str) -> bool:
        """Whether parts of another template match this template, so that both sets would contain them."""
        other, names = Template(text)._split
        return other.url == self._split[0].url and self._match(names.replace(PART, "part")) is not None

    def _groups(self) -> list[str]:
        """Names of the repository's groups if the parts are groups of one repository, else empty."""
        if "#" not in self.text:
            return []
        from vczstore.stores.icechunk import IcechunkStore  # here, since importing icechunk is slow
        from vczstore.stores.resolve import group_of

        split = group_of(self.text)
        if split is None or PART in split[0]:
            return []
        with suppress(NotAStoreError):
            return IcechunkStore.at_url(split[0], self.options).groups()
        return []

    @property
    def record(self) -> "RecordFile":
        """Location of the set's record, the same for all spellings of the template."""
        return RecordFile(self.text, self._split[0].url, f".{self.name}{RECORD}", self.options)

    @property
    def name(self) -> str:
        """
        Identifier of the set within its folder, where other sets may share parts with it.

        A digest is appended where another template could give the same name. It does not depend on the folder.
        """
        names = self._split[1]
        name = names.replace(PART, "PART").replace("/", "_")
        is_clear = "/" not in names and "PART" not in names
        return name if is_clear else f"{name}-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"

    @property
    def _split(self) -> tuple[Address, str]:
        """
        The folder above the first ``{part}``, symlinks resolved, and the names below it: the same for all spellings.

        Raises
        ------
        OptionError
            If ``{part}`` is in the name of the bucket, or followed by ``..``.
        """
        if is_url(self.text) and PART in self.text.partition("://")[2].partition("/")[0]:
            raise OptionError(f"{self.text}: the parts of a set lie in one bucket; put {PART} behind its name")
        address = parse(self.text)
        above, _, rest = address.key.partition(PART)
        folder, slash, begin = above.rpartition("/")
        names = f"{begin}{PART}{rest}"
        if address.path is not None:
            folder = str(real_path(Path(folder or ("/" if slash else "."))))
            names = "/".join(name for name in names.split("/") if name not in ("", "."))
            if ".." in names.split("/"):
                raise OptionError(f"{self.text}: there is .. behind {PART}; name the parts without it")
        return replace(address, key=folder), names


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """
    Sort key for natural order: numbers by value, before letters.

    >>> sorted(["chrX", "chr10", "chr2"], key=_natural)
    ['chr2', 'chr10', 'chrX']
    """
    pieces = [piece for piece in re.split(r"(\d+)", name) if piece]
    return [(not piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]


@dataclass(frozen=True)
class PartRecord:
    """
    The record of one part.

    Attributes
    ----------
    base
        `Vcz.state` of the part before the operation.
    snapshot
        ID of the snapshot to be published; None for a store without snapshots.
    before, after
        Digests of its sample IDs, before and after the operation.
    is_done
        Whether the part is done: set in stores without snapshots, and before a purge, which deletes snapshots.
    """

    base: str
    snapshot: str | None
    before: str
    after: str
    is_done: bool = False


@dataclass(frozen=True)
class Record:
    """
    The changes that are about to become visible in all parts of a set.

    Attributes
    ----------
    id
        Digest of the request: the same request, made again, completes it.
    operation, summary
        Name of the operation, and what it does, for messages.
    parts
        The record of each part, in order.
    tags
        Tags to create in all parts once all are published.
    branch
        Branch on which they are published; empty for stores without branches.
    is_hidden
        Whether a part that still has its old sample IDs is certain to be unchanged.
    purge
        The ``tags`` option of the purge that follows (see `vczstore.choices.TAGS`); empty if none follows.
    """

    id: str
    operation: str
    summary: str
    parts: Mapping[str, PartRecord]
    tags: Sequence[str] = ()
    branch: str = ""
    is_hidden: bool = False
    purge: str = ""

    @property
    def is_staged(self) -> bool:
        """Whether all parts have staged snapshots, so that it can be completed by publishing them."""
        return all(part.snapshot is not None for part in self.parts.values())

    def with_done(self, *parts: str) -> "Record":
        """Return the record with some parts marked as done."""
        return replace(self, parts={**self.parts, **{part: replace(self.parts[part], is_done=True) for part in parts}})


@dataclass(frozen=True)
class RecordFile:
    """Location of a set's record: the file or object `name` in `folder`; `label` is the template, for messages."""

    label: str
    folder: str
    name: str
    options: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Path or URL of the record."""
        return f"{self.folder.rstrip('/')}/{self.name}"

    def read(self) -> Record | None:
        """
        Read the record; None if no operation is pending.

        Raises
        ------
        DamagedStoreError
            If it cannot be decoded.
        """
        content = self._get()
        if content is None:
            return None
        try:
            document = json.loads(content)
            parts = {str(name): PartRecord(**part) for name, part in document["parts"].items()}
            return Record(**{**document, "parts": parts, "tags": tuple(document["tags"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStoreError(
                f"{self.label}: {self.place} is not a record of this version, and describes an interrupted operation; "
                "complete it with the version that wrote it, or delete it if all parts have the same samples"
            ) from error

    def write(self, record: Record) -> None:
        """
        Write the record atomically; a local file is flushed to disk.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        content, path = json.dumps(asdict(record)).encode(), self._path
        try:
            if path is None:
                require("obstore", "obstore").put(self._objects(), self.name, content)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(path, self._half(path), content)
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise StorageError(
                f"{self.label}: {self.place}, the record of what is about to become visible in all parts, cannot be "
                f"written ({reason(error)}); make it writable"
            ) from error

    def delete(self) -> None:
        """Delete the record, and any half-written file of it."""
        path = self._path
        if path is not None:
            path.unlink(missing_ok=True)
            self._half(path).unlink(missing_ok=True)
        elif self._get() is not None:
            require("obstore", "obstore").delete(self._objects(), self.name)

    def _get(self) -> bytes | None:
        path = self._path
        try:
            if path is not None:
                return path.read_bytes()
            return bytes(require("obstore", "obstore").get(self._objects(), self.name).bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def _path(self) -> Path | None:
        path = parse(self.folder).path
        return None if path is None else real_path(path) / self.name

    @staticmethod
    def _half(path: Path) -> Path:
        return path.with_name(f"{path.name}.half")

    def _objects(self) -> Any:
        return object_store(self.folder, self.options)


def require_parts(operation: str, template: Template, parts: Sequence[str]) -> None:
    """
    Check that parts are given, have valid names, and are distinct.

    Raises
    ------
    NotAStoreError
        If no parts are given.
    OptionError
        If a name is invalid or given twice.
    """
    if not parts:
        raise NotAStoreError(f"{operation}: {template.text}: there are no parts; correct the path, or create them")
    for part in parts:
        if not part or "/" in part or part.startswith(".") or "{" in part:
            raise OptionError(f"{operation}: {part!r} is not a part name; it has no slash or brace, and no leading dot")
    if len(set(parts)) < len(parts):
        raise OptionError(f"{operation}: a part of {template.text} is named twice; name each once")
