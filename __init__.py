"""knobctl: controllers that choose how much of a mixture-of-experts vision-language model each question needs.

The names below are the public interface, described in `docs/reference/api.md`; each is loaded on first access. To read
the code, start with `docs/development/architecture.md`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands.live import live_system
    from .controllers.checkpoint import Controllers
    from .data.cache.reader import open_cache
    from .precompute.models.loading import load_model
    from .precompute.run.config import PrecomputeConfig
    from .precompute.scale.launch import precompute as build_cache
    from .replay.evaluation.compare import compare
    from .replay.evaluation.validate import validate_controllers
    from .replay.recipes import TrainConfig
    from .replay.report.page.write import write_report
    from .replay.training.cross_validate import cross_validate
    from .replay.training.train import train_controllers
    from .serving.engine import Engine

__version__ = "0.2.0"

__all__ = [
    "Controllers",
    "Engine",
    "PrecomputeConfig",
    "TrainConfig",
    "build_cache",
    "compare",
    "cross_validate",
    "live_system",
    "load_model",
    "open_cache",
    "train_controllers",
    "validate_controllers",
    "write_report",
]
# Name -> module that defines it; `module:name` where it is defined under another name.
_HOMES = {
    "Controllers": "controllers.checkpoint",
    "Engine": "serving.engine",
    "PrecomputeConfig": "precompute.run.config",
    "TrainConfig": "replay.recipes",
    "build_cache": "precompute.scale.launch:precompute",  # `knobctl.precompute` is the package
    "compare": "replay.evaluation.compare",
    "cross_validate": "replay.training.cross_validate",
    "live_system": "commands.live",
    "load_model": "precompute.models.loading",
    "open_cache": "data.cache.reader",
    "train_controllers": "replay.training.train",
    "validate_controllers": "replay.evaluation.validate",
    "write_report": "replay.report.page.write",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, defined = _HOMES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), defined or name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
