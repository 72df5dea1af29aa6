"""Language models: loading them, running parts of them, and making them faster for the time of a run.

Importing this package loads nothing; its modules import torch and transformers.
"""
