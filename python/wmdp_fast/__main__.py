"""`python -m wmdp_fast` is `wmdp-fast`."""

from wmdp_fast.cli import console

console()
