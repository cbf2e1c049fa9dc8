"""`python -m onnxopt`."""

import sys

from onnxopt.cli.main import main

sys.exit(main())
