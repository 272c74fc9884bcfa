"""What is measured on generated clips."""
