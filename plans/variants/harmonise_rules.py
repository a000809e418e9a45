"""Rules for harmonising sources, as the user gives them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vczstore.errors import OptionError

HAPLOID_CONTIGS = ("X", "chrX", "Y", "chrY", "M", "MT", "chrM")
"""The default contigs on which variants that a source lacks get haploid genotypes."""


@dataclass(frozen=True)
class Rules:
    """
    How sources are harmonised with a store.

    Attributes
    ----------
    allow_new_alleles
        Whether alleles that the store lacks are added to it.
    absent
        Genotypes of variants that a source lacks: one of `vczstore.choices.ABSENT`.
    new_variants
        What to do about variants that the store lacks: one of `vczstore.choices.NEW_VARIANTS`.
    haploid_contigs
        Names of the contigs on which genotypes of variants that a source lacks are haploid.
    numbers
        Number of FORMAT fields whose header does not give it, such as ``AD=R``; one of ``R``, ``A`` and ``G``.
    gvcf
        Whether the sources are gVCFs, whose reference blocks give calls.
    min_gq
        Calls of reference blocks with a lower GQ are missing; None if there is no limit.
    on_ref_mismatch
        What to do about new variants whose REF contradicts another: one of `vczstore.choices.REF_MISMATCHES`.
    keep_blocks
        Whether the store keeps the reference blocks, for variants that are added later.
    is_copied
        Whether variants are inserted into a copy of the store, which is made even if there are no new variants.
    """

    allow_new_alleles: bool = False
    absent: str = "missing"
    new_variants: str = "refuse"
    haploid_contigs: Sequence[str] = HAPLOID_CONTIGS
    numbers: Sequence[str] = ()
    gvcf: bool = False
    min_gq: int | None = None
    on_ref_mismatch: str = "refuse"
    keep_blocks: bool = False
    is_copied: bool = False

    def haploid(self, contigs: Sequence[str]) -> list[int]:
        """Return the numbers of the haploid contigs among `contigs`."""
        return [i for i, name in enumerate(contigs) if name in self.haploid_contigs]

    @property
    def by_field(self) -> dict[str, str]:
        """
        The Number of each field in `numbers`, by the name of the field.

        Raises
        ------
        OptionError
            If one of `numbers` is malformed.
        """
        for text in self.numbers:
            if not re.fullmatch(r"[^=]+=[RAG]", text):
                raise OptionError(f"--number takes NAME=R, NAME=A or NAME=G, such as AD=R, and got {text!r}")
        return {name.removeprefix("call_"): number for name, number in (text.split("=") for text in self.numbers)}
