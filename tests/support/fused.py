"""Take a model through the stages before quantization, without proofs, which other tests do."""

from __future__ import annotations

from onnxopt.load.loaded import Loaded
from onnxopt.pipeline.opset import raise_opset_for
from onnxopt.pipeline.orders import passes_of
from onnxopt.pipeline.pipeline import run_to_rest
from onnxopt.proof.driver import Driver
from onnxopt.proof.observations import observations_of
from onnxopt.proof.prepare import prepare
from onnxopt.rewrite.registry import get
from onnxopt.spec import Target


def fuse(loaded: Loaded, target: Target | None = None) -> None:
    """Canonicalize and fuse `loaded.model` in place."""
    observations = observations_of(loaded)
    prepare(loaded.model)
    driver = Driver(loaded.model, observations, signature=loaded.signature, prove=False)
    stages = passes_of(target or Target("cpu"))
    run_to_rest(driver, stages["canonicalize"])
    raise_opset_for(driver, stages["fuse"])
    for name in stages["fuse"]:
        driver.apply(get(name))
