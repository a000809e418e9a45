"""YAML files that people write: read with their lines, and held against models."""
