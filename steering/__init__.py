"""Audio-language models that listen: measure the listening, steer the answer.

    from steering import load, calibrate, evaluate

A name is imported when it is first asked for: importing the package is quick, torch is not.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from steering.cpu_threads import limit_threads

if TYPE_CHECKING:
    from steering.calibration.calibrate import calibrate
    from steering.evaluation.evaluate import evaluate
    from steering.model.loading import load
    from steering.profile import Profile
    from steering.profile import load as load_profile
    from steering.transformers_hooks.hooks import listening

if "torch" not in sys.modules:
    limit_threads()

__all__ = ["Profile", "calibrate", "evaluate", "listening", "load", "load_profile"]

_HOMES = {
    "Profile": ("steering.profile", "Profile"),
    "calibrate": ("steering.calibration.calibrate", "calibrate"),
    "evaluate": ("steering.evaluation.evaluate", "evaluate"),
    "listening": ("steering.transformers_hooks.hooks", "listening"),
    "load": ("steering.model.loading", "load"),
    "load_profile": ("steering.profile", "load"),
}


def __getattr__(name: str) -> object:
    """One of the names in __all__."""
    if name not in _HOMES:
        raise AttributeError(f"module 'steering' has no {name!r}; it offers {', '.join(__all__)}")
    module, original = _HOMES[name]
    return getattr(import_module(module), original)


def __dir__() -> list[str]:
    return [*__all__, *globals()]
