"""Claims about batch normalization, run and judged."""

from bnrepro.system import cores as _cores  # noqa: F401  it looks at what torch's import changes

__all__ = ["__version__"]

__version__ = "0.1.0"
