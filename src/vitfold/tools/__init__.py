"""Tools for a folded model: trace, validate, measure, compare, calibrate, freeze."""
