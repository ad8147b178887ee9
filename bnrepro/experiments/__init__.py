"""The sources' claims as experiments: one module for each source. `base` says what an experiment is."""
