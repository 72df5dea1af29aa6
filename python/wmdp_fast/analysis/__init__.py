"""What saved results say: statistics, comparisons, and metrics computed again."""
