"""The fields of a store: whether those of a source fit, and what changes in the store where they do not."""
