"""Folding: put a method on a model, run it, and take it off without a trace."""
