"""Variants and alleles: matching, joining, ordering and harmonising them."""
