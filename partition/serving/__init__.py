"""One model out of many devices: what the coordinator is made of."""
