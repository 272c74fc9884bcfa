"""Training: recipes, the loop, data, stages, and in `tiny/` the built-in model."""
