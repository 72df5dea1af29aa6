"""Benchmarks, each against a peer in the same run; `wmdp-fast bench` prints them."""
