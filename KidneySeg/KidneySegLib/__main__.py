"""``python -m KidneySegLib`` is the command ``kidneyseg``."""

import sys

from KidneySegLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
