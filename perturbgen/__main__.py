"""``python -m perturbgen``, and what the command ``perturbgen`` calls."""

import signal


def _start() -> None:
    # a Ctrl-C while libraries are loaded ends the program, without their tracebacks
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from perturbgen.cli import main

    main()


if __name__ == "__main__":
    _start()
