"""Loads catnap_reseed into each Python that has this folder in PYTHONPATH.

Python runs only the first sitecustomize that it finds, so the one that this
hides is run from here.
"""

import importlib.machinery
import importlib.util
import os
import sys

import catnap_reseed  # noqa: F401


def _run_hidden():
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [p for p in sys.path if os.path.abspath(p or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_run_hidden()
