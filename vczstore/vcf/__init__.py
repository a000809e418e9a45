"""VCF and BCF files as sources: read, checked, and converted to VCZs by bio2zarr."""
