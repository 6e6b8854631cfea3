"""Examples: splits, mixtures, encoding, validation."""
