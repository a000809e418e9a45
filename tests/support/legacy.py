"""
Write and read VCZs with zarr-python 2.18, which bio2zarr used before it moved to zarr-python 3.

A script for the interpreter of the fixture ``legacy_python``; it imports nothing from this project::

    legacy.py write ARRAYS.npz LAYOUT.json STORE.vcz
    legacy.py read STORE.vcz ARRAYS.npz

``LAYOUT.json`` has the dimensions and chunks of each array, and whether it has variable-length strings. Each array
is read and saved twice: as ``consolidated/NAME`` with consolidated metadata, and as ``plain/NAME`` without them.
"""

import json
import sys


def write(arrays_path: str, layout_path: str, store_path: str) -> None:
    """Write a format 2 store with consolidated metadata."""
    import numpy as np
    import zarr
    from numcodecs import Blosc, VLenUTF8

    assert zarr.__version__.startswith("2.18.")
    with open(layout_path) as file:
        layout = json.load(file)
    root = zarr.open_group(store_path, mode="w")
    root.attrs.update({"vcf_zarr_version": "0.4", "source": "tests"})
    with np.load(arrays_path) as arrays:
        for name, values in arrays.items():
            is_string = layout[name]["is_string"]
            # AUTOSHUFFLE has no equivalent in format 3
            shuffle = {"b": Blosc.BITSHUFFLE, "f": Blosc.AUTOSHUFFLE}.get(values.dtype.kind, Blosc.SHUFFLE)
            array = root.create_dataset(
                name,
                shape=values.shape,
                chunks=layout[name]["chunks"],
                dtype=object if is_string else values.dtype,
                object_codec=VLenUTF8() if is_string else None,  # zarr-python then sets fill_value to 0
                compressor=Blosc(cname="zstd", clevel=7, shuffle=shuffle),
                dimension_separator="." if name in {"call_DP", "sample_pca", "variant_allele"} else "/",
            )
            array[...] = values.astype(object) if is_string else values
            array.attrs["_ARRAY_DIMENSIONS"] = layout[name]["dimensions"]
    zarr.consolidate_metadata(store_path)


def read(store_path: str, arrays_path: str) -> None:
    """Save all arrays, read with and without consolidated metadata."""
    import numpy as np
    import zarr

    assert zarr.__version__.startswith("2.18.")
    groups = {"consolidated": zarr.open_consolidated(store_path, mode="r"), "plain": zarr.open(store_path, mode="r")}
    arrays = {}
    for mode, group in groups.items():
        for name, array in group.arrays():
            values = array[...]
            arrays[f"{mode}/{name}"] = values.astype("U") if values.dtype.kind == "O" else values
    np.savez(arrays_path, **arrays)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
