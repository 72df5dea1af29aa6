"""`python -m wmdp_fast` is `wmdp-fast`."""

import sys

from wmdp_fast.cli import main

sys.exit(main())
