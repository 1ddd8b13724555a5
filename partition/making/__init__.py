"""The steps of a plan: resumable, in processes of their own."""
