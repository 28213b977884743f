"""What a finished model is good for: measured, compared, asked to go on, exported to other runtimes."""
