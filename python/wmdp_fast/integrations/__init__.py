"""This package inside the harnesses and training loops that people already run; a file for each, imported by name."""
