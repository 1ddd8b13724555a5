"""Which sub-model goes where, and how large it may be."""
