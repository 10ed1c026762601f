"""Command lines: parsing and wiring only."""
