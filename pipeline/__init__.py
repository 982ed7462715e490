"""Phantom's image-generation pipeline: definitions in, booted and published images out."""

__version__ = "0.1.0"
