"""Language models: loading them, and scoring continuations with them.

Importing this package loads nothing; its modules import torch and transformers.
"""
