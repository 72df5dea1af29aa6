"""Unlearning: a trainer that runs methods, of which RMU (`rmu`) is the first, and sweeps over their settings.

Importing this package loads nothing; its modules import torch where they need it.
"""
