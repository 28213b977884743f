"""Whose bundles may be opened, and opening one."""
