"""Stage1, Stage2, the frozen budget encoder and their checkpoint. Knows nothing of the model or of training."""
