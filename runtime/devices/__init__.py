"""Several devices at once: devices.yaml, who answers, and a profile on each."""
