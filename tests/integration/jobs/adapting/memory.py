"""A small memory that a student is adapted to, and texts for it."""

import numpy as np

import refbert
from refbert.config import AdaptConfig
from refbert.folder import save_correction
from refbert.memory.adaptation import adapt, adapting_student
from refbert.memory.version import current_version
from vector_store.store import Store

THINGS = ("kettle", "lamp", "bicycle", "violin", "garden", "river", "engine", "letter")
TEXTS = [f"the {thing} of {name} is {how}" for thing in THINGS for name in ("Ann", "Bob", "Cleo") for how in (
    "old", "new", "broken", "on the table", "what we talked about", "lost in the rain",
)]  # fmt: skip
ASKED = [f"the {thing} of Dan is {how}" for thing in THINGS for how in ("old", "broken", "lost in the rain")]


class Memory:
    """An adapted memory in the making: its options, its store, and the student whose answers it corrects."""

    def __init__(self, config, client, folder, teacher):
        self.options: AdaptConfig = config.adapt
        self.config = config
        self.client, self.folder, self.teacher = client, folder, teacher
        self.store = Store(client, config.store)
        self.student, self.name = adapting_student(config.references, folder, teacher, batch=16)
        self.store.ensure(self.student.texts.manifest)
        self.scratch = folder.parent / "scratch"

    def add(self, texts):
        points = []
        for text, (ids, states) in zip(texts, self.teacher.encode_texts(texts), strict=True):
            row = {"text": text, "source": "s", "document": text, "split": "train"}
            made = self.student.texts
            points.append(made.point(row, made.identifier(text), ids, states.mean(0, dtype=np.float32), None))
        self.store.upsert(points)

    def adapt(self):
        adapted = adapt(self.store, self.student, self.name, self.scratch, self.options, 0)
        save_correction(self.folder, adapted.correction)
        return adapted

    def cosine(self, texts=ASKED, references=None):
        """How near the answers of the student's folder are to the teacher's, in the mean."""
        wanted = np.stack([states.mean(0, dtype=np.float32) for _, states in self.teacher.encode_texts(texts)])
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        with refbert.load(self.folder, references) as student:
            return float((student.encode(texts) * wanted).sum(1).mean())

    def state(self):
        version = current_version(self.client, self.config.store, self.name)
        points = [point for page in self.store.pages() for point in page]
        residuals = {point.id: point.residuals[version.correction.reader].tobytes() for point in points}
        return version.correction.to_bytes(), residuals
