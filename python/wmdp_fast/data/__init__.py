"""Where question files and corpora are, and reading them."""
