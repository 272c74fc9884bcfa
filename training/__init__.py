"""Training: recipes, the loop, data and metrics."""
