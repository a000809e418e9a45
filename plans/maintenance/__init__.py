"""Implementation of the operations that inspect, export or clean up a store: check, diff, verify, repair, purge, gc."""
