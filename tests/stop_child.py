"""A main thread that is busy where no signal reaches it, as in a compiler: `stop_child.py held|free`."""

import hashlib
import sys

from preflight.cli.process_end import end_process
from preflight.training.stop_requests import stop_requests

if __name__ == "__main__":
    with stop_requests(leave=lambda: end_process(130)) as stop:
        if sys.argv[1] == "held":
            stop.hold()
        sys.stdout.write("busy\n")
        sys.stdout.flush()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000_000)
    sys.stdout.write("free again\n")
