"""``python -m bnrepro``."""

from bnrepro.cli import main

if __name__ == "__main__":
    main()
