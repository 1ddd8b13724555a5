"""`python -m edgevit` is the command line."""

from edgevit.cli import main

if __name__ == "__main__":
    main()
