"""Convert a model to OpenVINO, and with `calibration` quantize it to int8 with NNCF."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import openvino

job = json.loads(sys.argv[1])
model = openvino.convert_model(job["source"])
if job.get("int8"):
    import nncf

    with np.load(job["calibration"], allow_pickle=False) as archive:
        feeds = {name: archive[name] for name in archive.files}
    lengths = feeds["attention_mask"].sum(axis=1)
    rows = [
        {name: array[index : index + 1, : lengths[index]] for name, array in feeds.items()}
        for index in range(len(lengths))
    ]
    model = nncf.quantize(model, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
openvino.save_model(model, str(Path(job["out"]) / "model.xml"), compress_to_fp16=False)
