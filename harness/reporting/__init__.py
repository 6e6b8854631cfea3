"""Numbers and Markdown for people."""
