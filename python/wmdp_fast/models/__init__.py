"""Language models: loading them, running parts of them, and making them faster for the time of a run.

Importing this package loads neither torch nor transformers, which its modules import; if one is too old, it says so.
"""

from wmdp_fast.runtime import requirements

requirements.check()
