"""`python -m preflight`."""

import os
import sys

if __name__ == "__main__":
    # As pip does: the working directory may hold a `bench/` or `checks/` of the user's own, which must not shadow ours.
    if sys.path and sys.path[0] in ("", os.getcwd()):
        sys.path.pop(0)
    from preflight.cli import main

    main()
