"""What things are and how they lie on disk. Knows numpy, pyarrow and polars; knows nothing of torch or of the model."""
