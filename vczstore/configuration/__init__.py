"""YAML files that people write: parsed with line numbers, and validated by models."""
