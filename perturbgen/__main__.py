"""``python -m perturbgen`` is the ``perturbgen`` command."""

from perturbgen.cli import main

if __name__ == "__main__":
    main()
