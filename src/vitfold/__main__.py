"""`python -m vitfold`."""

from vitfold.cli import main

if __name__ == "__main__":
    main()
