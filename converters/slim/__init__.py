"""Latency-driven slimming: from a network and a target latency to a smaller network."""
