"""Job files: several operations on one store in one commit."""
