"""A method on a model: put on, run, taken off without a trace."""
