"""The party that holds private documents: verifies a bundle, picks an expert, fine-tunes, sends nothing."""

from owner.calling import specialize

__all__ = ["specialize"]
