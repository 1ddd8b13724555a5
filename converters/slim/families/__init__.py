"""The families that can be slimmed, one a file."""
