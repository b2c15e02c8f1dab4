"""What a memory gains a student on texts that it does not hold: alone, corrected, and with references."""

import numpy as np
import torch
from torch.nn import functional as F

from jobs.config import RunConfig
from jobs.corpus.prepared import PassageRows, PreparedCorpus
from refbert.corpus import text_of
from refbert.correction import Correction
from refbert.memory.reader import Reader
from refbert.memory.retrieval import open_retriever
from refbert.memory.version import current_version
from refbert.teacher import Teacher
from vector_store.client import Client
from vector_store.store import Store


def measured_gain(
    config: RunConfig,
    client: Client,
    teacher: Teacher,
    student: Reader,
    correction: Correction,
    corpus: PreparedCorpus,
    most: int,
) -> dict[str, float]:
    """Return the mean cosine to the teacher of up to `most` held-out texts; empty where the corpus holds none out."""
    table = corpus.table("heldout")
    chosen = np.random.default_rng(config.seed).permutation(table.num_rows)[:most]
    rows = PassageRows(table).at(np.sort(chosen))
    assert student.texts is not None
    stored = Store(client, config.store).existing([student.texts.identifier(text_of(row)) for row in rows])
    rows = [row for row in rows if student.texts.identifier(text_of(row)) not in stored]
    if not rows:
        return {}
    texts, documents = [text_of(row) for row in rows], [row["document"] for row in rows]
    wanted = torch.from_numpy(np.stack([states.mean(0, dtype=np.float32) for _, states in teacher.encode_texts(texts)]))
    version = current_version(client, config.store, correction.student)
    source = open_retriever(client, version.store, student.texts, version.references.criterion, version.parts())
    readers = {
        "alone": (None, None),
        "global": (correction, None),
        "references": (correction, source),
    }
    gain = {"texts": float(len(texts))}
    for name, (corrected_by, asks) in readers.items():
        reader = Reader(
            student.model, student.tokenizer, student.max_tokens, student.texts, asks,
            correction=corrected_by, words=student.words, batch=student.batch, strict=True,
        )  # fmt: skip
        cosines = torch.empty(len(texts))
        for forward in reader.forwards(texts, documents):
            said = forward.output.sentence_embedding.float().cpu()
            cosines[forward.rows] = F.cosine_similarity(said, wanted[forward.rows], dim=-1)
        gain[name] = float(cosines.mean())
    return gain
