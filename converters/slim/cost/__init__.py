"""What the parts of a network cost in time on the engine and device that will run it."""
