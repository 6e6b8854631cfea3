"""SuperGLUE: eight English tasks of language understanding, in three prompt formats."""
