"""Claims about batch normalization, run and judged."""
