"""The HTML report: one file about an evaluation, or about two, that opens anywhere and fetches nothing."""
