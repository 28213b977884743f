"""Private files to distinct windows of tokens."""
