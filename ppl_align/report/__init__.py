"""What a person reads: tables for a terminal, plots, a self-contained HTML page."""
