"""Smaller ViTs out of a large one."""
