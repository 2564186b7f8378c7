"""Entry point of ``python3 -m ci.provision``."""

from __future__ import annotations

import sys

from ci.provision.main import main

sys.exit(main(sys.argv[1:]))
