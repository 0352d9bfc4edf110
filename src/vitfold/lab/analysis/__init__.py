"""Looking into models: why tokens can be merged, and what merging does to a model."""
