"""The built-in model: worlds whose truth is known, what is trained on them, and how it is scored."""
