"""Registers the student with transformers' Auto classes, which load a student's folder once this is imported.

`AutoModel` gives the model whose answers are sentence vectors: the one that it gives in an environment without this package.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from refbert.sentence_model import RefBertSentenceModel
from refbert.student import RefBertForSequenceClassification
from refbert.student_config import RefBertConfig

AutoConfig.register("refbert", RefBertConfig)
AutoModel.register(RefBertConfig, RefBertSentenceModel)
AutoModelForSequenceClassification.register(RefBertConfig, RefBertForSequenceClassification)
