"""The party that holds private documents: verifies a bundle, picks an expert, fine-tunes, sends nothing."""
