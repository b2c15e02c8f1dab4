"""The method: a student that reads its teacher's states of a similar text.

Its names are imported when they are first used (PEP 562), for torch and transformers cost seconds that a config, an error or a
command line need not wait for. Any of the names registers the student with transformers' Auto classes. The library needs torch,
transformers, numpy and pydantic; no cluster and no database.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refbert.student import RefBertForSequenceClassification, RefBertModel
    from refbert.student_config import RefBertConfig
    from refbert.trained import TrainedStudent, load

__all__ = ["RefBertConfig", "RefBertForSequenceClassification", "RefBertModel", "TrainedStudent", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module("refbert.trained")  # which has them all, and registers the student
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
