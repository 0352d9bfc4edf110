"""`python -m vitfold`, and the command `vitfold`."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while it is being imported ends it in one line too."""
    try:
        from vitfold.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
