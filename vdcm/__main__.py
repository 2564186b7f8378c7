"""``python -m vdcm`` is the ``vdcm`` command."""

from vdcm.cli import main

if __name__ == "__main__":
    main()
