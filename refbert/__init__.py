"""The method: a student that reads its teacher's states of a similar text.

Importing it registers the student with transformers' Auto classes, so that `AutoModel.from_pretrained(path)` loads one.
It needs torch, transformers, numpy and pydantic; no cluster and no database.
"""

from refbert.student import RefBertForSequenceClassification, RefBertModel
from refbert.student_config import RefBertConfig
from refbert.trained import TrainedStudent, load

__all__ = ["RefBertConfig", "RefBertForSequenceClassification", "RefBertModel", "TrainedStudent", "load"]
