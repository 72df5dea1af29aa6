"""From a model and requests to log-likelihoods: by token trie, by padded rows, or by a server."""
