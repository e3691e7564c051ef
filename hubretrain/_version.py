"""The version, alone, so that every room may know it without importing the package's names."""

__version__ = "0.1.0"
