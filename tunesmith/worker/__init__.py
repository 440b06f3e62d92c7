"""Runs jobs: claims them, validates their files, supervises the trainer child, publishes what it wrote."""
