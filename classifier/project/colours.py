"""Colours of the project's pictures."""

INK, MUTED, FAINT = "#1f2933", "#66727f", "#e3e8ed"
BLUE, ORANGE, GREEN = "#2f6db5", "#e07b39", "#3a9268"
