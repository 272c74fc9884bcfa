"""`python -m tests.gpu`: the project at full size on a GPU, checked and measured; runner.py says how."""

import sys

from .runner import main

if __name__ == "__main__":
    sys.exit(main())
