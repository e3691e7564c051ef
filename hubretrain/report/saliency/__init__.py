"""report/saliency."""
