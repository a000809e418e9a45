"""Stores: where a VCZ is located, and how writes to it become visible."""
