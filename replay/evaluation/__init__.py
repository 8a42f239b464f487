"""What policies are worth on held-out samples, with intervals; in replay, and live against any executor."""
