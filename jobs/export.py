"""Export a finished run's student: ONNX graphs beside its safetensors, and a model card from its report.

    python jobs/export.py [RUN.yaml] [name=...] [export.int8=true] [export.license=apache-2.0] [export.languages=[en]]

Writes student/onnx/ (see refbert/export.py) and student/README.md, and completes a folder of an earlier release so that other
libraries load it (see refbert/remote_code.py). The graph of a student that was adapted answers as its folder does, corrected
without a look-up; with references refbert/exported.py answers, in ONNX Runtime and numpy. Needs the packages of the extra
`export`, and the report of `jobs/evaluate.py`: a card without figures is none.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.export", __doc__)  # before what follows is imported, which takes seconds

import json
import logging

from jobs.config import RunConfig
from jobs.evaluation.model_card import model_card, write_card
from jobs.memory.student_memory import reads_memory
from jobs.run.directory import require_trained
from refbert.correction_files import correction_in
from refbert.errors import InputError
from refbert.export import Corrected, export_onnx
from refbert.folder import load_model
from refbert.memory.version import memory_it_is_of
from refbert.remote_code import make_loadable
from refbert.teacher import load_tokenizer

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise InputError where the run has not been trained, or not been evaluated; before Ray is started."""
    require_trained(config)
    report = config.run_directory / "report.json"
    if not report.exists():
        raise InputError(
            f"{report} is not there, and a card has its figures; evaluate the run first: `python jobs/evaluate.py "
            f"name={config.name}`"
        )


def run(config: RunConfig) -> None:
    """Write the graphs and the card."""
    check(config)
    student = config.run_directory / "student"
    report = config.run_directory / "report.json"
    model = load_model(student)
    special_ids = load_tokenizer(str(student)).all_special_ids
    make_loadable(student, special_ids)  # an earlier release's folder does not load elsewhere
    correction, words = correction_in(student, special_ids)
    corrected = Corrected(correction, words) if correction and words else None
    export = export_onnx(model, student / "onnx", config.export.int8, config.export.tolerance, corrected)
    memory = model.config.memory if reads_memory(config, student) else None
    if correction:
        memory = memory_it_is_of(correction)[1].model_dump(mode="json")
    card = model_card(
        json.loads(report.read_text()), config.name, memory, export, config.export.license, config.export.languages
    )
    write_card(card, student)
    log.info("exported: %s, no output further than %.1e from the student's", student / "onnx", export.difference)
    if export.int8_difference is not None:
        log.info("int8: %.1e, sentence cosine at least %.4f", export.int8_difference, export.int8_cosine)
