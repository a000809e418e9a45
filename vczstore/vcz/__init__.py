"""What a VCZ is: its arrays, dimensions, missing values and sample IDs."""
