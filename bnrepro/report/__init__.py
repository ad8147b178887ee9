"""Comparisons, figures, and the report."""
