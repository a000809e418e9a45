"""How a user has sources harmonised."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vczstore.errors import OptionError

HAPLOID_CONTIGS = ("X", "chrX", "Y", "chrY", "M", "MT", "chrM")
"""Where a variant that a source lacks gets genotypes of one allele, unless said otherwise."""


@dataclass(frozen=True)
class Rules:
    """
    How sources are re-expressed.

    Attributes
    ----------
    allow_new_alleles
        Whether alleles that the store has not seen come in.
    absent
        The genotypes of a variant that a source lacks: one of `vczstore.choices.ABSENT`.
    new_variants
        What to do about variants that the store lacks: one of `vczstore.choices.NEW_VARIANTS`.
    haploid_contigs
        Where those genotypes have one allele.
    numbers
        What FORMAT fields go by whose header does not say so: ``AD=R``, with one of ``R``, ``A`` and ``G``.
    gvcf
        Whether the sources are gVCFs, whose reference blocks tell calls.
    min_gq
        Calls of blocks with a lower GQ are missing; None if all count.
    on_ref_mismatch
        What to do about new variants whose REF contradicts another: one of `vczstore.choices.REF_MISMATCHES`.
    keep_blocks
        Whether the store keeps the blocks, for variants that come later.
    is_copied
        Whether variants are inserted into a copy of the store, which is made even if none are new.
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
        """Return the numbers of those contigs where genotypes of absent variants have one allele."""
        return [i for i, name in enumerate(contigs) if name in self.haploid_contigs]

    @property
    def by_field(self) -> dict[str, str]:
        """
        The same numbers, by the names of fields.

        Raises
        ------
        OptionError
            If one is not of that form.
        """
        for text in self.numbers:
            if not re.fullmatch(r"[^=]+=[RAG]", text):
                raise OptionError(f"--number takes NAME=R, NAME=A or NAME=G, such as AD=R, and got {text!r}")
        return {name.removeprefix("call_"): number for name, number in (text.split("=") for text in self.numbers)}
