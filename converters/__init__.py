"""torch in, proven artefacts out."""
