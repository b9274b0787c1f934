"""`python -m distmeta`."""

from distmeta.cli import main

if __name__ == "__main__":
    main()
