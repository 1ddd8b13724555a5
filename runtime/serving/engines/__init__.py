"""Where an artefact runs: a process of its own, or a thread."""
