"""What both parties must agree on, byte for byte: the lower floor, which imports neither of them."""
