"""A program that goes on in a child, as every command does, for tests of what ends the child."""

from __future__ import annotations

IN_CHILD = """
import ctypes, os, signal, sys, time
from onnxopt.cli.watcher import ChildDiedError, go_on_in_child
try:
    code = go_on_in_child()
except ChildDiedError as error:
    print(error); sys.exit(2)
if code is not None:
    sys.exit(code)
"""
