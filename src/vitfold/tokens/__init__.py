"""What became of every token of a forward pass. Knows no model."""
