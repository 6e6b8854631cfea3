"""Training of one adapter: steps, batches, checkpoints."""
