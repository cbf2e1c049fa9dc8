"""Export and optimize with optimum-onnx at level O2 (fusions that keep the numbers), as its command line does."""

from __future__ import annotations

import json
import sys

from optimum.exporters.onnx import main_export

job = json.loads(sys.argv[1])
main_export(job["checkpoint"], job["out"], task="feature-extraction", optimize="O2", local_files_only=True)
