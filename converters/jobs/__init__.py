"""Work in steps that are done once, side by side in processes here or on Ray."""
