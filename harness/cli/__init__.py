"""The command line: `main` holds the group and the exit status, the other modules hold the commands.

Heavy packages (torch, transformers, pydantic) are imported inside the command that needs them, so that `harness --help`
and `harness list` start at once.
"""
