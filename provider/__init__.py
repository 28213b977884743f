"""The party that clusters a generic corpus, pretrains on it and publishes signed bundles."""
