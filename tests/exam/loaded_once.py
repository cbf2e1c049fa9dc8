"""What every child of an exam needs, imported once by the server that children are forked from."""

import onnx
import onnxruntime

import onnxopt.road.optimize
import tests.property.generate
import tests.property.judge
import tests.property.repro

__all__ = ["onnx", "onnxopt", "onnxruntime", "tests"]
