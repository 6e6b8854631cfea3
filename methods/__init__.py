"""Multi-task LoRA methods, one per file."""
