"""`python -m uniego`."""

from .cli import main

if __name__ == "__main__":
    main()
