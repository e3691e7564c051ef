"""`python -m hubretrain` is `hubretrain`."""

from hubretrain.cli import main

if __name__ == "__main__":
    main()
