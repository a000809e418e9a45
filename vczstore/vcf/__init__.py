"""VCF and BCF files as sources: validated, and converted to VCZs by bio2zarr."""
