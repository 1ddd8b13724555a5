"""ED-ViT: split a large vision transformer over several devices."""
