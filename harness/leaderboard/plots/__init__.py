"""Pictures of a leaderboard."""
