"""The command line: ``python -m goclaw.testing SERVER``.

Owns nothing but the call. Not in here: the servers.
"""

from __future__ import annotations

import sys

from goclaw.testing import main

if __name__ == "__main__":
    sys.exit(main())
