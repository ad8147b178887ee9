"""A run's directory: its record, checkpoints, TensorBoard, provenance."""
