"""``python -m goclaw`` is the command line.

Owns nothing. Not in here: the verbs (``cli/``).
"""

import sys

from goclaw.cli import main

sys.exit(main())
