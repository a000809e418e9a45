"""Which INFO fields tell of the samples as they are, and which of the samples as they were.

Some INFO fields are computed from genotypes, and an operation that changes samples leaves those of a store behind. It
says so in an attribute of the store's root group: before its first write, so that a field may be called stale that is
not, where an operation was stopped, but never the other way round. `plans.compilers.recompute` makes fields current
again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plans.variants.info_fields import FIELDS
from vczstore.errors import DamagedStoreError
from vczstore.stores.edits import SetAttribute
from vczstore.vcz.model import INFO_STATES, Vcz

STALE, CURRENT = "stale", "current"


def array_name(field: str) -> str:
    """What the array of an INFO field is called."""
    return f"variant_{field}"


def states(vcz: Vcz) -> dict[str, str]:
    """
    The fields of a store that are known to be stale or current. Of others it is unknown which samples they count.

    Raises
    ------
    DamagedStoreError
        If the attribute is none of ours.
    """
    value = vcz.attributes.get(INFO_STATES, {})
    if not isinstance(value, Mapping) or any(state not in (STALE, CURRENT) for state in value.values()):
        raise DamagedStoreError(
            f"{vcz.label}: the root attribute {INFO_STATES} does not say which fields are stale; delete it, and "
            "recompute them"
        )
    return {str(field): state for field, state in value.items() if array_name(field) in vcz.arrays}


def stale(vcz: Vcz) -> list[str]:
    """The fields of a store that tell of samples as they were."""
    return [field for field, state in states(vcz).items() if state == STALE]


def mark(vcz: Vcz, fields: Iterable[str], state: str) -> tuple[Vcz, tuple[SetAttribute, ...]]:
    """Note the state of fields: the store as it will be, and what writes it; nothing where it is written already."""
    old = states(vcz)
    new = dict(sorted({**old, **dict.fromkeys(fields, state)}.items()))
    if new == old:
        return vcz, ()
    attributes = {**vcz.attributes, INFO_STATES: new}
    return replace(vcz, attributes=attributes), (SetAttribute(INFO_STATES, new, vcz.zarr_format),)


def samples_change(vcz: Vcz) -> tuple[Vcz, tuple[SetAttribute, ...]]:
    """Note that all such fields of a store are going to be stale; as `mark`."""
    return mark(vcz, (field for field in FIELDS if array_name(field) in vcz.arrays), STALE)
