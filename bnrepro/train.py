"""``run(cfg) -> Path``: one configuration in, one directory out. See `bnrepro.training.train`."""

from bnrepro.training.train import run

__all__ = ["run"]
