"""hubretrain: cache bottlenecks once, screen many heads honestly, fine-tune the winner."""

__version__ = "0.1.0"
