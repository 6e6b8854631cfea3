"""PromptCBLUE: 16 Chinese medical tasks as text generation."""
