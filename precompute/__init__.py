"""The frozen model under every knob setting. Knows the data, and of the controllers only the budget encoder."""
