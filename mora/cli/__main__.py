"""`python -m mora.cli`, as launchers of several processes start it."""

import sys

from mora.cli import main

if __name__ == "__main__":
    sys.exit(main())
