"""Uses recorded runs: leaderboard, comparison, promotion, reproduction. Begin with `reading`."""
