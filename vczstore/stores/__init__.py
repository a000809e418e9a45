"""Where a VCZ lives, and how what is written to it becomes visible."""
