"""Fine-tuning, fusion, and how right both are."""
