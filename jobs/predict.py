"""Score rows offline: stream a corpus through the student with Ray Data, and write its embeddings or labels as parquet.

    python jobs/predict.py                                          the run's own corpus, into runs/<name>/predictions/
    python jobs/predict.py RUN.yaml predict.path=new.jsonl corpus.text_field=body
    python jobs/predict.py RUN.yaml predict.path=s3://bucket/texts/ predict.output=s3://bucket/vectors/
    python jobs/predict.py RUN.yaml predict.path=pairs.parquet corpus.text_pair_field=second
    python jobs/predict.py RUN.yaml predict.student=runs/ablation/tasks/SST-2/nearest-0/student     a task's student: labels
    ray job submit -- python jobs/predict.py RUN.yaml predict.num_workers=8 predict.gpus_per_worker=1

Every readable row of every file is scored, whole (cut at the student's tokens): corpus.max_texts and corpus.long_texts do not
apply.
The output holds one part per file and range of rows, each written completely or not at all, and manifest.json last. A killed
job started again computes only the parts that are not there. Columns: source, row, text[, text_pair], reference (the rung of
the degrade ladder: live, cached or null), and embedding (L2-normalised) or label and one score per class (of a regression its
score alone).
Of a student that was adapted, a column nearness has the cosine of a text's nearest reference, and thinnest.jsonl lists the
texts that are farthest from all that is stored (predict.thinnest): where its memory is thin. All rows are read by one version.
Rows that are no text, and those of a part that kept killing its process, are counted, and listed with their reasons in
rejected.jsonl.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.predict", __doc__)  # before what follows is imported, which takes seconds

import logging
from contextlib import suppress
from itertools import islice

from jobs.config import RunConfig
from jobs.evaluation.scored_parts import (
    REJECTED,
    THINNEST,
    ScoringJob,
    as_line,
    claim_output,
    finish,
    finished_counts,
    open_output,
    score,
    scoring_identity,
)
from jobs.memory.store import at_one_version
from jobs.memory.student_memory import memory_of, reads_memory, student_run, version_to_read
from refbert.config import CorpusConfig
from refbert.corpus import PROBED_ROWS, corpus_files, passed_over, read_rows
from refbert.errors import InputError
from refbert.folder import has_head
from refbert.student_config import RefBertConfig
from vector_store.errors import StoreUnavailable

log = logging.getLogger(__name__)


def run(config: RunConfig) -> None:
    """Score every row that has not been scored, then write the manifest."""
    config, folder = student_run(config, config.predict.student)
    corpus = scored_corpus(config)
    files = corpus_files(corpus)
    if others := passed_over(corpus):
        log.warning(others)
    for _ in islice(read_rows(files[0], corpus), PROBED_ROWS + 1):
        pass  # a wrong text_field is refused before the output is claimed
    classifies = has_head(RefBertConfig.from_pretrained(folder))
    write = config.predict.write or ("labels" if classifies else "embeddings")
    if write == "labels" and not classifies:
        raise InputError(
            f"{folder} has no head, so it has no labels; set predict.write=embeddings, or distil on a task"
        )
    output = open_output(config.predict.output or str(config.run_directory / "predictions"))
    with memory_of(config, folder) as url:
        if url:
            with suppress(StoreUnavailable):  # said by then, and scored without references
                config = at_one_version(config, url, patience_s=5.0)
        version = version_to_read(config, folder, url)
        identity = scoring_identity(config, corpus, files, folder, write, version)
        claim_output(output, identity)
        if (finished := finished_counts(output)) is not None:
            log.info("complete: %s, %s", output.root, as_line(finished))
            return
        score(ScoringJob(config, corpus, folder, url, output, write, version), files)
    counts = finish(output, files, identity, config.predict.thinnest)
    log.info("scored: %s, %s", output.root, as_line(counts))
    if version:
        log.info("where the memory is thin: %s", output.path(THINNEST))
    if counts["rejected"]:
        log.warning("%d rows rejected, with their reasons in %s", counts["rejected"], output.path(REJECTED))
    if counts["null"] and reads_memory(config, folder):
        log.warning(
            "%d rows found no reference; if the store was away, delete their parts and start again", counts["null"]
        )


def scored_corpus(config: RunConfig) -> CorpusConfig:
    """Return how rows are read: as the run's corpus, without its labels, and of another file without its documents."""
    others = {"path": config.predict.path, "document_field": None} if config.predict.path else {}
    return config.corpus.model_copy(update={"label_field": None, **others})
