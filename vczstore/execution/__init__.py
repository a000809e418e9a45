"""Running operations: options, the engine that executes plans, retries and results."""
