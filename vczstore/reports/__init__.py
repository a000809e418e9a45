"""Self-contained HTML pages and tables, rendered from values that other packages compute."""
