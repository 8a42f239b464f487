"""nano, the bundled model: its datasets, its tokenizer and its training. Nothing here is needed to run nano."""
