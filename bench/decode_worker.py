"""Time one start of a decoder: `decode_worker.py model.onnx '{"alone": [batch, new, past, capacity]}'` prints seconds.

Past and present are one buffer each, bound once; the median of the runs of a measure is printed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import onnxruntime as ort

THREADS = 2
WARM, SECONDS, MOST = 2, 3.0, 60


def main() -> None:
    """Open the model, run every measure."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    print(json.dumps({name: measure(session, *sizes) for name, sizes in json.loads(sys.argv[2]).items()}))


def measure(session: ort.InferenceSession, batch: int, new: int, past: int, capacity: int) -> float:
    """Return the median seconds of a run."""
    head = next(output.shape for output in session.get_outputs() if output.name == "present.0.key")
    heads, size = 3, 64  # of SmolLM2; the builder leaves the size open
    heads = head[1] if isinstance(head[1], int) else heads
    size = head[3] if isinstance(head[3], int) else size
    binding = session.io_binding()
    generator = np.random.default_rng(0)
    for given in session.get_inputs():
        if given.name.startswith("past_key_values"):
            room = (generator.standard_normal((batch, heads, capacity, size)) * 0.1).astype(np.float32)
            buffer = ort.OrtValue.ortvalue_from_numpy(room)
            binding.bind_ortvalue_input(given.name, buffer)
            binding.bind_ortvalue_output(given.name.replace("past_key_values", "present"), buffer)
    binding.bind_cpu_input("input_ids", generator.integers(10, 1000, (batch, new)))
    binding.bind_cpu_input("attention_mask", np.ones((batch, past + new), np.int64))
    binding.bind_output("logits")
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < WARM + 3 or (time.perf_counter() - start < SECONDS and len(taken) < MOST):
        begin = time.perf_counter()
        session.run_with_iobinding(binding)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken[WARM:])


if __name__ == "__main__":
    main()
