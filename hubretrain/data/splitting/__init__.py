"""data/splitting."""
