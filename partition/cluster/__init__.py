"""A running cluster of a plan: launched, looked at, asked, measured, stopped."""
