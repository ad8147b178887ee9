"""Datasets: where their files come from, how arrays are interpreted, and batches."""
