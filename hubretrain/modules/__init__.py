"""The modules that can be cached: their catalogue, their sources, and how they are loaded."""
