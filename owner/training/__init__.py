"""Fine-tuning the chosen model, and what a run leaves on the disk."""
