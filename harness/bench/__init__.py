"""`harness bench`: what a training step costs."""
