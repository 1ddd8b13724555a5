"""What runs on a device: sessions, checks, the profiler. No torch."""
