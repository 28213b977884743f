"""Attacks on the result, before anyone else can try."""
