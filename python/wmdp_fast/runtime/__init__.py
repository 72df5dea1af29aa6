"""What everything stands on: files, tables, progress, the environment. Imports nothing else of this package."""
