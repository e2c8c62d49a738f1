"""Run the command line without its console script: `python -m hafrm.cli`."""

import sys

from hafrm.cli import main

sys.exit(main())
