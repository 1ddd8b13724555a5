"""From a model reference to a torch module: one kind of reference per file."""
