"""Which expert, or which point between some, fits the private text."""
