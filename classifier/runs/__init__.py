"""Recorded runs read back: leaderboard, comparison, promotion, reproduction. Begin with `reading`."""
