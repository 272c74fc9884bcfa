"""What the model learns from: clips with captions and known truth."""
