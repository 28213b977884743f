"""Can `owner specialize` run on this machine, and what is missing: looked at before private text is near."""
