"""Results of an evaluation, as objects and as lm-eval's files."""
