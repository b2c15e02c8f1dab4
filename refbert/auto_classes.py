"""Registers the student with transformers' Auto classes, which load a student's folder once this module is imported.

`AutoModel` then gives the model whose answers are sentence vectors (`refbert.sentence_model`). Without this package `AutoModel`
gives the same model, from the copy of the code in the folder.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from refbert.sentence_model import RefBertSentenceModel
from refbert.student import RefBertForSequenceClassification
from refbert.student_config import RefBertConfig

AutoConfig.register("refbert", RefBertConfig)
AutoModel.register(RefBertConfig, RefBertSentenceModel)
AutoModelForSequenceClassification.register(RefBertConfig, RefBertForSequenceClassification)
