"""What users choose: specs, keys, requests."""
