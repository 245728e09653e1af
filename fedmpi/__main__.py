"""``python -m fedmpi`` is the command ``fedmpi``."""

import sys

from fedmpi.cli import main

sys.exit(main())
