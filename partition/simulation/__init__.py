"""A cluster that is not there: its devices, its links, and what happens to a request in it."""
