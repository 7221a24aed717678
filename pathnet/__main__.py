"""`python -m pathnet` is the `pathnet` command."""

import sys

from pathnet.cli.main import main

sys.exit(main())
