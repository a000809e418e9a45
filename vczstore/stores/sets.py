"""Sets of stores: what a template with ``{part}`` stands for, and the record of what is about to become visible in all.

The record is a small file beside the stores, in the folder above the first ``{part}``. It is written when all is ready
and deleted when all is done, so that whoever comes after a run that was killed in between knows what is missing where.
It holds no sample IDs, and digests of them that are slow to compute.
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
from vczstore.stores.filesystem import sync_names
from vczstore.stores.locations import OBJECT_STORES, Address, is_url, parse, real_path
from vczstore.stores.object_store import find, is_of_storage, object_store, reason, require

PART = "{part}"
"""What stands in a template for the name of a part."""

RECORD = ".vczstore-set.json"
"""What the name of a record ends in."""


def is_template(location: object) -> bool:
    """Whether what a user calls a store by names a set of stores."""
    return isinstance(location, str | os.PathLike) and PART in os.fspath(location)


@dataclass(frozen=True)
class Template:
    """
    A path or URL with ``{part}`` in it.

    Attributes
    ----------
    text
        As it was given.
    options
        The storage options that reach it.
    """

    text: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def of(self, part: str) -> str:
        """The path or URL of one part."""
        return self.text.replace(PART, part)

    def find(self, suffixes: Sequence[str] = ()) -> list[str]:
        """
        The names of the parts that are there, those with numbers in the order of these.

        Parameters
        ----------
        suffixes
            What the names of files end in that are parts, where parts may be files.

        Raises
        ------
        OptionError
            If it is elsewhere, and there is no way to list the parts: more than its last name differs between them, or
            it is in no object store.
        NotAStoreError
            If what fits is a link to what is not there, such as a part on a disk that is not mounted.
        """
        folder, names = self._split
        if groups := self._groups():
            found = [f"{names.rpartition('#')[0]}#{group}" for group in groups]
        elif folder.path is not None:
            self._refuse_dead_links(folder.path, names)
            found = glob.glob("*".join(map(glob.escape, names.split(PART))), root_dir=folder.path)
            files = (".zip", *suffixes)  # other files lie beside stores: keys of withdrawn samples, for one
            found = [name for name in found if (folder.path / name).is_dir() or name.lower().endswith(files)]
        elif folder.kind not in OBJECT_STORES or "/" in names:
            raise OptionError(
                f"{self.text}: parts are found by the last name of a URL of an object store only; name them with "
                "--parts (parts: in a job)"
            )
        else:
            pattern = "*".join(map(_literal, names.split(PART)))
            pattern = pattern if folder.account is None else quote(pattern, safe="*")
            places = find(f"{folder.url}/{pattern}", self.options, suffixes) or []
            found = [parse(place).key.rpartition("/")[2] for place in places]
        matches = (self._match(name) for name in found)
        return sorted({match["part"] for match in matches if match}, key=_natural)

    def _refuse_dead_links(self, folder: Path, names: str) -> None:
        """Raise a `NotAStoreError` for a link that fits, or is above what fits, and whose target is not there."""
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
        """The name of a part in a path from the folder of the set."""
        first, *others = (re.escape(piece) for piece in (names or self._split[1]).split(PART))
        return re.fullmatch(f"{first}(?P<part>[^/]+){'(?P=part)'.join(others)}", name)

    def takes(self, text: str) -> bool:
        """Whether what lies at places with ``{part}`` in their names would be found as parts of this set, too."""
        other, names = Template(text)._split
        return other.url == self._split[0].url and self._match(names.replace(PART, "part")) is not None

    def _groups(self) -> list[str]:
        """The groups of the repository whose groups are the parts; none where each part has a place of its own."""
        if "#" not in self.text:
            return []
        from vczstore.stores.icechunk import IcechunkStore  # here, since they take long to import
        from vczstore.stores.resolve import group_of

        found = group_of(self.text)
        if found is None or PART in found[0]:
            return []
        with suppress(NotAStoreError):
            return IcechunkStore.at_url(found[0], self.options).groups()
        return []

    @property
    def record(self) -> "RecordFile":
        """Where the record of the set lies: the same place for all spellings of one set."""
        return RecordFile(self.text, self._split[0].url, f".{self.name}{RECORD}", self.options)

    @property
    def name(self) -> str:
        """
        What tells the set from others in its folder, which may have parts in common with it.

        Where another template would read the same, a digest of this one follows; its folder may be moved.
        """
        names = self._split[1]
        said = names.replace(PART, "PART").replace("/", "_")
        is_clear = "/" not in names and "PART" not in names
        return said if is_clear else f"{said}-{hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"

    @property
    def _split(self) -> tuple[Address, str]:
        """
        The folder above the first ``{part}``, links resolved, and the names below it: the same for all spellings.

        Raises
        ------
        OptionError
            If there is none.
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


def canonical(location: str) -> str:
    """What names a place, the same for all spellings of it."""
    address = parse(location)
    return address.url if address.path is None else str(real_path(address.path))


def _literal(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """
    The order of names: numbers in them by their values, before letters.

    >>> sorted(["chrX", "chr10", "chr2"], key=_natural)
    ['chr2', 'chr10', 'chrX']
    """
    pieces = [piece for piece in re.split(r"(\d+)", name) if piece]
    return [(not piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]


@dataclass(frozen=True)
class PartRecord:
    """
    What a record says of one part.

    Attributes
    ----------
    base
        Its state before.
    snapshot
        The snapshot that is going to be what readers see; None of a store without snapshots.
    before, after
        Digests of its sample IDs.
    is_done
        Whether it is done: of a store without snapshots, or before a purge, which deletes these.
    """

    base: str
    snapshot: str | None
    before: str
    after: str
    is_done: bool = False


@dataclass(frozen=True)
class Record:
    """
    What is about to become visible in all parts of a set.

    Attributes
    ----------
    id
        A digest of what was asked for: who asks for the same completes it.
    operation, summary
        What is done, in words.
    parts
        What is done to each part, in their order.
    tags
        The tags that all parts get once it is visible in all.
    branch
        The branch on which it becomes visible, of stores that have any.
    is_hidden
        Whether a part that has the samples that it had is surely as it was.
    purge
        What the purge that follows does with tags, once all parts are done; nothing follows if empty.
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
        """Whether all that is missing waits in the stores, and has only to be published."""
        return all(part.snapshot is not None for part in self.parts.values())

    def with_done(self, *parts: str) -> "Record":
        """The same once some parts are done."""
        return replace(self, parts={**self.parts, **{one: replace(self.parts[one], is_done=True) for one in parts}})


@dataclass(frozen=True)
class RecordFile:
    """Where the record of a set lies: a file, or an object, beside its stores."""

    label: str
    folder: str
    name: str
    options: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Its path or URL."""
        return f"{self.folder.rstrip('/')}/{self.name}"

    def read(self) -> Record | None:
        """
        The record; None where nothing is under way.

        Raises
        ------
        DamagedStoreError
            If it cannot be understood.
        """
        content = self._get()
        if content is None:
            return None
        try:
            said = json.loads(content)
            parts = {str(name): PartRecord(**one) for name, one in said["parts"].items()}
            return Record(**{**said, "parts": parts, "tags": tuple(said["tags"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedStoreError(
                f"{self.label}: {self.place} is no record of this version, and says what was stopped halfway; complete "
                "it with the version that wrote it, or delete it if all parts have the same samples"
            ) from error

    def write(self, record: Record) -> None:
        """
        Write it whole; on this machine it is on disk before this returns.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        try:
            self._put(json.dumps(asdict(record)).encode())
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise StorageError(
                f"{self.label}: {self.place}, which says what is about to become visible in all parts, cannot be "
                f"written ({reason(error)}); allow it to be written"
            ) from error

    def _put(self, content: bytes) -> None:
        path = self._path
        if path is None:
            require("obstore", "obstore").put(self._objects(), self.name, content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        half = self._half(path)
        with half.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
        sync_names(path.parent)

    def delete(self) -> None:
        """All is done, or nothing was begun: what a killed process has half written goes, too."""
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
    Check that there are parts, each once, whose names are names.

    Raises
    ------
    NotAStoreError
        If there are none.
    OptionError
        If one is no name, or there twice.
    """
    if not parts:
        raise NotAStoreError(f"{operation}: {template.text}: no part is there; correct the path, or make it")
    for part in parts:
        if not part or "/" in part or part.startswith(".") or "{" in part:
            raise OptionError(f"{operation}: {part!r} is no name of a part; it has no slash or brace, and no dot first")
    if len(set(parts)) < len(parts):
        raise OptionError(f"{operation}: a part of {template.text} is named twice; name each once")
