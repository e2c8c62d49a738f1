"""Run the command line without its console script: `python -m hafrm`."""

import sys

from hafrm.cli import main

sys.exit(main())
