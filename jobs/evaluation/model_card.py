"""The model card of a student: what its report, its memory's manifest and its export say, and how to load it.

Computes nothing and holds no figure of its own. The license is the user's to choose.
"""

from pathlib import Path
from typing import Any

from jobs.evaluation.report import markdown
from refbert.atomic import write_whole
from refbert.export import MODEL, MODEL_INT8, Export


def model_card(
    report: dict[str, Any], name: str, memory: dict[str, Any] | None, export: Export, license_name: str | None
) -> str:
    """Return the card as Markdown with the Hub's front matter; `memory` is the manifest of what the student reads."""
    measured = {key: value for key, value in report.items() if key != "explanation"}  # it quotes the corpus
    body = [line for line in markdown(measured, name).splitlines()[2:] if not line.startswith("![")]
    lines = [
        "---",
        f"license: {license_name}" if license_name else "# license: choose one before you publish this",
        "library_name: transformers",
        f"base_model: {report['teacher']['name']}",
        "tags: [refbert, distillation, retrieval-augmented]",
        "---",
        "",
        f"# {name}",
        "",
        *body,
        "",
        "## Load",
        "",
        "In this folder, with the package `refbert`" + (" and its extra `memory`:" if memory else ":"),
        "",
        "```python",
        *_usage(memory is not None, "logits" in export.outputs),
        "```",
        "",
        *_memory(memory),
        "## ONNX",
        "",
        f"`onnx/{MODEL}` ({export.bytes / 1e6:.1f} MB, opset {export.opset}) takes {_listed(export.inputs)} and gives "
        f"{_listed(export.outputs)}. On random inputs no output is further than {export.difference:.1e} from the student's.",
    ]
    if export.int8_difference is not None:
        assert export.int8_bytes is not None
        lines += [
            "",
            f"`onnx/{MODEL_INT8}` ({export.int8_bytes / 1e6:.1f} MB, weights and activations in 8 bits): no output further "
            f"than {export.int8_difference:.1e}, sentence cosine at least {export.int8_cosine:.4f}.",
        ]
    return "\n".join(lines) + "\n"


def write_card(card: str, student: Path) -> None:
    """Write README.md into the student's folder, whole."""
    write_whole(student / "README.md", card)


def _usage(has_memory: bool, has_head: bool) -> list[str]:
    answer = 'student.predict(["a text"])' if has_head else 'student.encode(["a text"])'
    if not has_memory:
        return ["import refbert", "", 'student = refbert.load(".")', f"print({answer})"]
    return [
        "import refbert",
        "",
        'memory = "http://host:6334"  # the server that holds it, or a store\'s directory',
        'with refbert.load(".", memory) as student:',
        f"    print({answer})",
    ]


def _memory(memory: dict[str, Any] | None) -> list[str]:
    if memory is None:
        return ["This student reads no references.", ""]
    return [
        "## Memory",
        "",
        "Without its memory the student reads the null reference. It reads the states of this teacher only:",
        "",
        "| key | value |",
        "|---|---|",
        *(f"| {key} | `{value}` |" for key, value in memory.items()),
        "",
    ]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)
