"""What one does with a folded model: look, measure, compare, find its numbers."""
