"""Training: the loop, networks, optimisers, metrics, evaluation, several processes."""
