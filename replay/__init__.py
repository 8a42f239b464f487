"""Training and evaluation by look-up in the cache. Knows nothing of the model."""
