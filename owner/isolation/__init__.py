"""What keeps a run from the network and from other files, raised before it reads anything."""
