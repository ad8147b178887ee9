"""How figures look, and what papers draw with."""
