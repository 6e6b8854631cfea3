"""What ``harness bench`` measures."""
