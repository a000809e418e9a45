"""Rename samples: change sample IDs, and drop the lines of the VCF header that name the old ones."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from plans.compilers.options import allow_returning, missing_ok
from vczstore.declarations import argument
from vczstore.errors import OptionError, SampleError, UnsuitableError
from vczstore.execution.operations import Edit, Operation

if TYPE_CHECKING:
    from plans.core.model import Compiling, Plan
    from vczstore.vcz.model import Vcz


@dataclass(frozen=True, kw_only=True)
class RenameSamples(Edit):
    """
    Give samples other IDs.

    The file has a line for each sample, with its present ID and its new one, separated by a tab, or by spaces if there
    is none. Samples that have their new IDs already are skipped, so that an interrupted run can be completed, and a
    finished one repeated. A job that is run again renames samples that were added under their old IDs since. IDs must
    not pass from one sample to another, since a second run would pass them on again. Lines of the VCF header that name
    an old ID are dropped, as by remove.

    Raises
    ------
    SampleError
        If a sample is not in the store, or an ID would be used twice. No sample is renamed then.

    Examples
    --------
    >>> rename_samples("cohort.vcz", "new-ids.tsv").counts
    {'samples renamed': 1}
    """

    group: ClassVar[str] = "edit"
    is_step: ClassVar[bool] = True
    step_examples: ClassVar[tuple[Any, ...]] = ("new-ids.tsv", {"file": "new-ids.tsv", "missing-ok": True})

    file: Any = argument(
        "A UTF-8 file with two columns: the present and the new ID of each sample.",
        metavar="FILE",
        kind="file",
        examples=("new-ids.tsv",),
    )
    missing_ok: bool = missing_ok()
    allow_returning: bool = allow_returning(examples=(True,))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.file, str | os.PathLike):
            raise OptionError(f"rename-samples: a file of two columns is expected, not a {type(self.file).__name__}")

    def compile(self, compiling: "Compiling") -> "Plan":
        """Compile the edit that writes the new IDs, chunk by chunk of `sample_id`. IDs must stay unique."""
        from plans.compilers.remove import set_header
        from plans.core.model import Plan, unknown_ids, with_notes
        from plans.core.withdrawn import Withdrawn, readmitting, returning_samples
        from vczstore.stores.edits import SetItems
        from vczstore.vcz import vcf_headers
        from vczstore.vcz.model import SAMPLE_ID, listing, positions_of, refuse_other_spellings, unknown_samples

        store, vcz, pairs = compiling.store, compiling.vcz, self._pairs
        vcz.require_whole("rename-samples")
        present = set(vcz.sample_ids.tolist())
        done = {old for old, new in pairs.items() if old not in present and new in present}
        renames = {old: new for old, new in pairs.items() if old not in done and old != new}
        if exchanged := [new for new in pairs.values() if new in pairs and pairs[new] != new]:
            raise SampleError(
                f"rename-samples: {listing(exchanged)} would pass from one sample of {vcz.label} to another, and when "
                "this is run again nothing tells whether that was done; rename by two files, the first to IDs that are "
                "not there"
            )
        positions, unknown = positions_of(vcz, list(renames))
        if unknown and self.missing_ok:
            others = sorted(present - pairs.keys() - {*pairs.values()})
            removed = Withdrawn.of(store, vcz).among(unknown)
            refuse_other_spellings("rename-samples", vcz, unknown, removed, others, "nothing was renamed")
            renames = {old: new for old, new in renames.items() if old not in {*unknown}}
        elif unknown:
            way_out = f"nothing was renamed, vczstore samples {vcz.label} lists the samples"
            raise unknown_samples("rename-samples", vcz, unknown, way_out)
        names = vcz.sample_ids.copy()
        names[positions] = [renames[old] for old in vcz.sample_ids[positions].tolist()]
        edits = [SetItems(vcz.arrays[SAMPLE_ID], positions, names[positions].tolist())] if len(positions) else []
        _check_names(vcz, names.tolist(), renames)
        kept = {*names.tolist()}
        header = vcf_headers.without(vcz.attributes, pairs.keys() - kept - {*unknown}, kept)
        after = vcz.planned({}, names)
        returning = returning_samples(
            "rename-samples",
            store,
            vcz,
            renames.values(),
            allow=self.allow_returning,
            way_out="give other IDs, or say --allow-returning",
        )
        plan = Plan(
            operation="rename-samples",
            store=store,
            base=vcz.state,
            edits=(*set_header(header, vcz), *edits),
            memory=compiling.memory,
            after=replace(after, attributes={**after.attributes, **header}),
            if_stopped="some samples may have their new IDs already",
            counts={"samples renamed": len(positions), **({"samples renamed before": len(done)} if done else {})},
        )
        return with_notes(readmitting(plan, vcz, returning), unknown_ids(len(unknown), len(pairs)))

    def again(self, vcz: "Vcz", ahead: Sequence[Operation]) -> "RenameSamples | None":
        """The step to apply again in a job; None if every old ID in the store was given by a later step."""
        from plans.core.model import in_words
        from vczstore.vcz.model import listing

        present = set(vcz.sample_ids.tolist())
        old = {old for old, new in self._pairs.items() if old in present and old != new}
        later = {new for step in ahead if isinstance(step, RenameSamples) for new in step._pairs.values()}
        if reused := sorted(old & later):
            if old <= later:
                return None
            raise SampleError(
                f"rename-samples: {in_words({'samples': len(old - later)})} came into {vcz.label} under old IDs of "
                f"{self.file} since it was used, and a later step gives {len(reused):,} of its old IDs to others; give "
                "the former in a file of their own",
                f"these are {listing(sorted(old - later))}",
            )
        return replace(self, missing_ok=True) if old else None

    @property
    def _pairs(self) -> dict[str, str]:
        pairs = _read(Path(self.file))
        if not pairs and not self.missing_ok:
            raise UnsuitableError(
                f"rename-samples: {self.file} names no sample; give the present and the new ID in each line, or set "
                "missing-ok (--missing-ok) if it may be empty"
            )
        return pairs


def _read(path: Path) -> dict[str, str]:
    """Read a file of two columns: the new IDs of samples by their present ones."""
    from vczstore.configuration.lists import read_lines

    pairs: dict[str, str] = {}
    for number, line in read_lines("rename-samples", path, "two columns, the present and the new ID"):
        columns = [column.strip() for column in (line.split("\t") if "\t" in line else re.split(" +", line))]
        if len(columns) == 2 and not columns[1].isprintable():
            raise UnsuitableError(f"rename-samples: {path}:{number}: {columns[1]!a} has characters that cannot be seen")
        if len(columns) != 2 or not all(columns):
            raise UnsuitableError(
                f"rename-samples: {path}:{number}: expected the present ID and the new one, found "
                f"{sum(map(bool, columns))}; separate them by a tab if IDs have spaces"
            )
        old, new = columns
        if pairs.setdefault(old, new) != new:
            raise SampleError(f"rename-samples: {path}:{number}: {old!a} has another new ID above; give it one")
    return pairs


def _check_names(vcz: "Vcz", names: list[str], pairs: Mapping[str, str]) -> None:
    """Raise a `SampleError` if an ID would be used twice, look like another one, or be too long for the array."""
    import numpy as np

    from vczstore.vcz import strings
    from vczstore.vcz.model import SAMPLE_ID, listing
    from vczstore.vcz.sample_ids import looking_alike

    new, counts = list(pairs.values()), Counter(names)
    if twice := [name for name in new if counts[name] > 1]:
        raise SampleError(
            f"rename-samples: {vcz.label} would have {listing(twice)} twice; nothing was renamed, give each sample an "
            "ID of its own"
        )
    for name, other in looking_alike(new, names).items():
        raise SampleError(
            f"rename-samples: {name!a} looks like {other!a} of {vcz.label}, but for spaces around it or in "
            "another Unicode form; write both in the same"
        )
    try:
        strings.as_stored(np.array([*new, None], dtype=object)[:-1], vcz.arrays[SAMPLE_ID].dtype)
    except ValueError as error:
        raise SampleError(f"rename-samples: {SAMPLE_ID} of {vcz.label}: {error}; give shorter IDs") from error
