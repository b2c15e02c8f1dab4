"""What each stage of ingest and of distillation takes per text, measured on this machine one stage at a time.

Stages of one thread are measured in CPU seconds, the store's by its process; teacher and student, which use every core, in
seconds of the whole machine. Texts of 128 tokens, the packaged teacher, a student of the default shape with
reference attention, an embedded store.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.config import RunConfig
from jobs.corpus.parts import ReadAndSplit
from jobs.corpus.prepared import PassageRows, PreparedCorpus
from jobs.training.loop import teacher_targets
from measures.collection import process_cpu_s, server_pid
from measures.distilling import BATCH
from measures.engine_blocks import single_worker_stream
from refbert.corpus import corpus_files
from refbert.distillation import Distiller, new_student
from refbert.memory.manifest import manifest_of
from refbert.memory.texts import ReferenceTexts, reference_texts
from refbert.optimisation import adamw
from refbert.passages import text_of
from refbert.teacher import Teacher
from vector_store.client import connect
from vector_store.server.process import embedded_server
from vector_store.store import Store

LOG_FOLDER = "wal"
"""Of the engine's write-ahead log, which is no larger for a billion points than for a thousand."""


@dataclass(frozen=True)
class Rates:
    """Per text: seconds of one core (`core_s`), seconds of all this machine's cores together (`machine_s`), bytes, FLOP.

    read: from a file's row to a prepared passage. client: a point from states to its acknowledged upsert. store: the server's
    part of writing a point, of saying whether it has one, of a look-up among `references`. look_up: the trainer's part of one,
    tokenising included. teacher: one forward. student: forward, backward, optimizer. disk: what is kept, without the log.
    """

    cores: int
    references: int
    tokens: float
    read_core_s: float
    client_core_s: float
    store_write_core_s: float
    store_exists_core_s: float
    look_up_core_s: float
    store_look_up_core_s: float
    teacher_machine_s: float
    student_machine_s: float
    sent_bytes: float
    disk_bytes: float
    look_up_bytes: float
    teacher_flop: float
    student_flop: float
    student_parameters: int

    @property
    def ingest_texts_per_s(self) -> float:
        """Ingest on this machine, where all stages but reading, which is done before, share the cores."""
        one_core_s = self.client_core_s + self.store_write_core_s + self.store_exists_core_s
        return 1 / (self.teacher_machine_s + one_core_s / self.cores)

    @property
    def distil_texts_per_s(self) -> float:
        """Distillation on this machine, where trainer, look-ups and store share the cores."""
        one_core_s = self.look_up_core_s + self.store_look_up_core_s
        return 1 / (self.teacher_machine_s + self.student_machine_s + one_core_s / self.cores)

    def as_dict(self) -> dict[str, Any]:
        """The rates as they stand in a results file."""
        return asdict(self)


def measure_rates(config: RunConfig, corpus: PreparedCorpus, teacher: Teacher, folder: Path, num_texts: int) -> Rates:
    """Measure every stage on so many texts of a prepared corpus."""
    torch.set_num_threads(os.cpu_count() or 1)
    passages = PassageRows(corpus.table("train")).at(np.asarray(corpus.distinct_rows()[:num_texts]))
    teacher.encode_texts([text_of(passage) for passage in passages[:BATCH]])  # warms up
    started_s = time.perf_counter()
    encoded = teacher.encode_texts([text_of(passage) for passage in passages])
    teacher_machine_s = (time.perf_counter() - started_s) / len(passages)
    texts = reference_texts(teacher, manifest_of(teacher, config.references), config.references)
    student, trained = _student(config, teacher, texts, passages)
    parameters = sum(p.numel() for p in student.parameters())
    tokens = float(np.mean([len(ids) for ids, _ in encoded]))
    embeddings = teacher.model.get_input_embeddings().weight.numel()
    return Rates(
        cores=os.cpu_count() or 1,
        references=len(passages),
        tokens=tokens,
        read_core_s=_read_core_s(config, folder),
        teacher_machine_s=teacher_machine_s,
        student_machine_s=trained,
        # Two operations per weight and token; attention's own products are a few in a hundred at 128 tokens.
        teacher_flop=2 * (teacher.num_parameters - embeddings) * tokens,
        student_flop=6 * (parameters - student.get_input_embeddings().weight.numel()) * tokens,
        student_parameters=parameters,
        **_store_rates(config, corpus, teacher, texts, passages, encoded, folder / "rates-store"),
    )


def _read_core_s(config: RunConfig, folder: Path) -> float:
    parts = folder / "parts"
    parts.mkdir()
    files = corpus_files(config.corpus)
    reading = ReadAndSplit(parts, config.corpus, config.teacher.model, config.teacher.tokens)
    started_s = time.process_time()
    batch = {"number": np.arange(len(files)), "file": np.array(files)}
    passages = sum(sum(part["passages"]) for part in reading(batch))
    return (time.process_time() - started_s) / passages


def _store_rates(
    config: RunConfig,
    corpus: PreparedCorpus,
    teacher: Teacher,
    texts: ReferenceTexts,
    passages: list[dict[str, Any]],
    encoded: list[tuple[NDArray[np.int32], NDArray[np.float16]]],
    directory: Path,
) -> dict[str, float]:
    """Write all passages, ask for their ids, look their neighbours up: CPU here and in the server, and bytes."""
    num = len(passages)
    with embedded_server(directory) as url, connect(config.store, url) as client:
        pid = server_pid(directory)
        store = Store(client, config.store)
        store.ensure(texts.manifest)

        def cpu_s() -> NDArray[np.float64]:
            return np.array([time.process_time(), process_cpu_s(pid)])

        started_s = cpu_s()
        with store.writer() as writer:
            for passage, (token_ids, states) in zip(passages, encoded, strict=True):
                writer.submit(
                    [
                        texts.point(
                            passage,
                            texts.identifier(text_of(passage)),
                            token_ids,
                            states.mean(0, dtype=np.float32),
                            states,
                        )
                    ]
                )
            writer.finish()
            sent_bytes = writer.sent_bytes / num
        write = (cpu_s() - started_s) / num
        ids = [texts.identifier(text_of(passage)) for passage in passages]
        started_s = cpu_s()
        store.existing(ids)
        exists = (cpu_s() - started_s) / num
        with single_worker_stream(config, url, corpus, teacher) as stream:
            stream.make(0)  # reads the term statistics
            started_s = cpu_s()
            num_batches = max(4, num // BATCH)
            received = sum(stream.make(number)[0].reference_states.numel() for number in range(1, 1 + num_batches))
            looked_up = (cpu_s() - started_s) / (num_batches * BATCH)
        files = [file for file in directory.rglob("*") if file.is_file() and LOG_FOLDER not in file.parts]
        disk_bytes = sum(file.stat().st_blocks * 512 for file in files) / num
    return {
        "client_core_s": float(write[0] + exists[0]),
        "store_write_core_s": float(write[1]),
        "store_exists_core_s": float(exists[1]),
        "look_up_core_s": float(looked_up[0]),
        "store_look_up_core_s": float(looked_up[1]),
        "sent_bytes": sent_bytes,
        "disk_bytes": disk_bytes,
        "look_up_bytes": received / (num_batches * BATCH) * 2 * 4 / 3,  # two bytes a number, as base64
    }


def _student(
    config: RunConfig, teacher: Teacher, texts: ReferenceTexts, passages: list[dict[str, Any]], steps: int = 6
) -> tuple[Any, float]:
    """A student of the default shape, and what a text takes to train it, references read, the teacher left out."""
    from refbert.memory.batch import student_batch
    from vector_store.codec import empty_neighbours, fill
    from vector_store.schema import StoredPoint

    distiller = Distiller(new_student(config.student, teacher, config.seed), config.loss).train()
    optimizer = adamw(distiller, config.train.learning_rate, config.train.weight_decay)
    asked = [text_of(passage) for passage in passages[:BATCH]]
    ids, mask, segments = texts.tokenize(asked)
    found = empty_neighbours(len(asked), texts.manifest, 1)
    encoded = teacher.encode_texts(asked)
    fill(found, {row: [StoredPoint("", states, ids, None)] for row, (ids, states) in enumerate(encoded)})
    batch = student_batch(ids, mask, found, texts.manifest.dim, None, segments)
    targets = teacher_targets(teacher, batch, config.loss, config.student.num_hidden_layers)
    for step in range(1 + steps):
        if step == 1:
            started_s = time.perf_counter()
        loss, _ = distiller(batch, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(distiller.parameters(), config.train.clip)
        optimizer.step()
        optimizer.zero_grad()
    return distiller.student, (time.perf_counter() - started_s) / (steps * len(asked))
