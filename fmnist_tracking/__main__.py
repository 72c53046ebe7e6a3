"""`python -m fmnist_tracking`: the same as the `fmnist-track` command."""

from fmnist_tracking.cli import main

if __name__ == "__main__":
    main()
