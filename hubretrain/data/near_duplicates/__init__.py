"""data/near_duplicates."""
