"""The command `ssvd`: `python -m ssvd` and the console script."""

import sys


def main() -> None:
    """Run the command line; say what to install where only the PEFT method is installed."""
    try:
        from ssvd.cli import run
    except ModuleNotFoundError as error:
        print(f"The command line needs {error.name}: pip install 'ssvd[speech]'", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
