"""Stale INFO fields: those that no longer agree with the samples of a store.

Some INFO fields are computed from genotypes, and an operation that changes samples makes them stale. It records this in
an attribute of the store's root group before its first write. So after an interrupted operation a current field may be
marked as stale, but never the other way round. `plans.compilers.recompute` makes fields current again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plans.variants.info_fields import FIELDS
from vczstore.errors import DamagedStoreError
from vczstore.stores.edits import SetAttribute
from vczstore.vcz.model import INFO_STATES, Vcz

STALE, CURRENT = "stale", "current"


def array_name(field: str) -> str:
    """Return the name of the array of an INFO field."""
    return f"variant_{field}"


def states(vcz: Vcz) -> dict[str, str]:
    """
    Return the recorded states of INFO fields, `STALE` or `CURRENT`. Fields without one may count any samples.

    Raises
    ------
    DamagedStoreError
        If the attribute is malformed.
    """
    value = vcz.attributes.get(INFO_STATES, {})
    if not isinstance(value, Mapping) or any(state not in (STALE, CURRENT) for state in value.values()):
        raise DamagedStoreError(
            f"{vcz.label}: the root attribute {INFO_STATES} does not say which fields are stale; delete it, and "
            "recompute them"
        )
    return {str(field): state for field, state in value.items() if array_name(field) in vcz.arrays}


def stale(vcz: Vcz) -> list[str]:
    """Return the stale fields of a store."""
    return [field for field, state in states(vcz).items() if state == STALE]


def mark(vcz: Vcz, fields: Iterable[str], state: str) -> tuple[Vcz, tuple[SetAttribute, ...]]:
    """Record the state of fields: return the planned store and the edits, none if nothing changes."""
    old = states(vcz)
    new = dict(sorted({**old, **dict.fromkeys(fields, state)}.items()))
    if new == old:
        return vcz, ()
    attributes = {**vcz.attributes, INFO_STATES: new}
    return replace(vcz, attributes=attributes), (SetAttribute(INFO_STATES, new, vcz.zarr_format),)


def mark_stale(vcz: Vcz) -> tuple[Vcz, tuple[SetAttribute, ...]]:
    """Mark all fields of a store that are computed from genotypes as stale; return as `mark`."""
    return mark(vcz, (field for field in FIELDS if array_name(field) in vcz.arrays), STALE)
