"""RMU unlearning: steering a model's activations on forget data towards a random vector, holding them on retain data.

Importing this package loads nothing; its modules import torch where they need it.
"""
