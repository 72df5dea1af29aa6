"""Benchmarks, each against a baseline in the same run; `wmdp-fast bench` prints them."""
