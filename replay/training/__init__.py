"""Training by replay: a run's data, the policy's losses, the trainer, its log. Start with `train.py`."""
