"""Explain one text: which references were read, their attention or weights, and how the output changes without them.

    python jobs/explain.py RUN.yaml explain.text="A film that is far too long."
    python jobs/explain.py name=quickstart explain.text="How old is she?" explain.text_pair="She was born in 1990."
    python jobs/explain.py RUN.yaml explain.text="..." explain.student=runs/ablation/tasks/RTE/nearest-0/student

Prints tables; writes explanation.json and, where references are read by attention, explanation.png into the run's directory.
Layers count from 0, as in student.reference_layers. Attention mass is the mean over heads and the text's own tokens.
"""

if __name__ == "__main__":
    import checkout  # noqa: F401  # the checkout is on the path from here on

    from jobs.launch import launch

    launch("jobs.explain", __doc__)  # before what follows is imported, which takes seconds

import logging

from jobs.config import RunConfig
from jobs.evaluation.explanation_report import print_explanation, write_explanation
from jobs.memory.student_memory import memory_of, open_reader, student_run
from jobs.run.worker import set_up_worker
from refbert.errors import InputError
from refbert.memory.explanation import explained
from refbert.passages import normalise

log = logging.getLogger(__name__)


def check(config: RunConfig) -> None:
    """Raise InputError where there is no text, or no student; before Ray is started."""
    asked = config.explain
    if not all(part is None or normalise(part) for part in (asked.text, asked.text_pair)):
        raise InputError('there is no text to explain; give explain.text="a text" (and explain.text_pair="its second")')
    student_run(config, asked.student)


def run(config: RunConfig) -> None:
    """Explain explain.text, print the explanation and write it."""
    check(config)
    asked = config.explain
    text = normalise(asked.text if asked.text_pair is None else (asked.text, asked.text_pair))
    config, folder = student_run(config, asked.student)
    with memory_of(config, folder) as url:
        reader = open_reader(config, folder, url, set_up_worker(1, 0), text=True)
        explanation = explained(reader, text)
    config.run_directory.mkdir(parents=True, exist_ok=True)
    write_explanation(explanation, config.run_directory, "explanation")
    print_explanation(explanation)
    log.info("explanation: %s", config.run_directory / "explanation.json")
