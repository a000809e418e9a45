"""Compilers of operations: a store and its sources in, a plan out."""
