"""The method: a student that reads what its teacher said of similar texts.

The names in `__all__` are imported when they are first used (PEP 562), for torch and transformers cost seconds that a config,
an error or a command line need not wait for. Using any of these names registers the student with transformers' Auto classes.
They need torch, transformers, numpy and pydantic; no cluster and, until a memory is opened, no database client. Some other
modules need extras of pyproject.toml.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refbert.memory.opening import load
    from refbert.memory.reader import Reader
    from refbert.student import RefBertForSequenceClassification, RefBertModel
    from refbert.student_config import RefBertConfig

__all__ = ["Reader", "RefBertConfig", "RefBertForSequenceClassification", "RefBertModel", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("refbert")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"Reader": "refbert.memory.reader", "load": "refbert.memory.opening"}.get(name, "refbert.student")
    importlib.import_module("refbert.auto_classes")  # registers the student with transformers
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
