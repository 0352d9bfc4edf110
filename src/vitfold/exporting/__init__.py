"""Models for the runtimes that serve them: written, verified there, and timed."""
