"""Training: the loop, networks, optimizers, metrics, evaluation, several processes."""
