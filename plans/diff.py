"""Diff: compare two states of a store, or two stores."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from plans.info import AT_METAVAR
from vczstore.declarations import argument, option
from vczstore.errors import OptionError
from vczstore.execution.operations import Operation

if TYPE_CHECKING:
    from plans.maintenance.diff import Difference
    from vczstore.execution.options import Options


@dataclass(frozen=True, kw_only=True)
class Diff(Operation):
    """
    Compare two states of a store, or two stores: samples, fields, variants and values.

    Samples are matched by ID, without removed ones; variants by contig, position, REF and ALTs, as in `append
    --harmonise`, where either side may have additional ALTs. Calls of samples and variants that both have are compared:
    genotypes by their alleles, in any order of ALTs and, unless phased, in any order within the call. Other fields with
    a value per allele are not compared where the order of alleles differs, and are listed as such. Data are read chunk
    by chunk, in tasks; chunks that are identical, byte for byte, are not decoded. The exit status is 0 even if there
    are differences.

    Raises
    ------
    OptionError
        If `other` is not given, and `at` and `to` are equal.
    IncompatibleError
        If the variants of one side are not sorted.

    Examples
    --------
    >>> diff("cohort.icechunk", at="release-1").is_same
    True
    """

    group: ClassVar[str] = "release"
    uses: ClassVar[tuple[str, ...]] = ("store", "branch", "workers", "progress")
    order: ClassVar[tuple[str, ...]] = ("store", "other")

    other: Any = argument(
        "The store to compare with; by default another state of the same store.",
        default=None,
        metavar="[OTHER]",
        kind="location",
    )
    at: str | None = option(None, "Compare this tag, branch or snapshot of the store.", metavar=AT_METAVAR)
    to: str | None = option(None, "Compare it with this state, of OTHER or the same store.", metavar=AT_METAVAR)
    ids: bool = option(False, "List the IDs of samples that only one of the two has.")
    exit_code: bool = option(False, "Exit with status 1 if anything differs.", python=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.other is None and self.at == self.to:
            raise OptionError("diff: name another store, or another state of this one with --at or --to")

    def perform(self, options: "Options", *, dry_run: bool) -> "Difference":
        from plans.maintenance.diff import compare
        from vczstore.stores.object_store import plain_errors
        from vczstore.stores.resolve import open_store

        store = options.for_store(self.store, [] if self.other is None else [self.other]).open(self.store)
        other = store
        if self.other is not None:
            with plain_errors(self.other):
                other = open_store(self.other, storage_options=options.shared(self.other, self.store))
        return compare((store, self.at), (other, self.to), options, ids=self.ids, exit_code=self.exit_code)
