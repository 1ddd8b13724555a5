"""Networks to train once, of which every subnet of a family is a part; one a file."""
