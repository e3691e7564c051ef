"""``python -m hubretrain.cli`` is ``hubretrain``."""

from hubretrain.cli import main

if __name__ == "__main__":
    main()
