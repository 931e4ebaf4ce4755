"""``python -m goclaw.cli``: how the bridge and `goclaw run --detach` start a daemon.

Owns nothing. Not in here: the verbs.
"""

import sys

from goclaw.cli import main

sys.exit(main())
