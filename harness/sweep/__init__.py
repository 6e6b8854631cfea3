"""The runs of a leaderboard file: entries, jobs, learning rates, scheduling."""
