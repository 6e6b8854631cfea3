"""Super-NaturalInstructions: English tasks with a definition, examples, and instances of several references."""
