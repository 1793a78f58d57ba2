"""`python -m cook` is the command `cook`."""

import sys

from cook.cli import main

if __name__ == "__main__":
    sys.exit(main())
