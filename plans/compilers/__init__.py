"""How operations are compiled: a store and its sources in, a plan out."""
