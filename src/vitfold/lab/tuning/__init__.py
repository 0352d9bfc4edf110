"""Tuning: the fold that loses least of those that were measured to keep what is asked for."""
