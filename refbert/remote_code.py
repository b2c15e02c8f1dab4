"""Write into a student's folder what transformers and sentence-transformers load it by without this package.

The user loads it with `trust_remote_code=True`. transformers takes a model's code from its folder where `auto_map` in
config.json names it, and follows relative imports only. So the files of this package that the classes in `ENTRIES` need are
copied beside the weights, their imports of each other made relative. sentence-transformers reads `modules.json`: here its own
modules, the student's pooling and normalisation.
"""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refbert.atomic import write_whole

ENTRIES = {
    "AutoConfig": "student_config.RefBertConfig",
    "AutoModel": "sentence_model.RefBertSentenceModel",
    "AutoModelForSequenceClassification": "student.RefBertForSequenceClassification",
}
"""Of which file which class an Auto class loads."""

HEADER = "# Copied from refbert/{name}.py (Apache-2.0). Runs where this folder is loaded with trust_remote_code=True.\n"

BEYOND = "\nif False:  # never run: files that are needed too, named for transformers 4\n"

MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
"""sentence-transformers' modules by their folders."""


def make_loadable(folder: Path, special_ids: Sequence[int]) -> None:
    """Put into a student's folder what other libraries load it by, in the place of what is there.

    Completes config.json, which then names the tokenizer's `special_ids`, and tokenizer_config.json. Weights stay as they are.
    """
    config = _read(folder / "config.json")
    has_head = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    entries = {
        auto: entry for auto, entry in ENTRIES.items() if has_head or auto != "AutoModelForSequenceClassification"
    }
    most = config.get("text_tokens") or config["max_position_embeddings"]
    for name, source in remote_code().items():
        write_whole(folder / f"{name}.py", source)
    _write(folder / "config.json", {**config, "auto_map": entries, "special_token_ids": sorted(special_ids)})
    tokenizer = folder / "tokenizer_config.json"
    _write(tokenizer, {**_read(tokenizer), "model_max_length": most})

    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(MODULES.items())
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": most, "do_lower_case": False})
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    for path in filter(None, MODULES):
        (folder / path).mkdir(exist_ok=True)
    _write(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config["dim"],
            f"pooling_mode_{'cls_token' if config.get('pooling') == 'cls' else 'mean_tokens'}": True,
            "include_prompt": True,
        },
    )


def remote_code() -> dict[str, str]:
    """Return the source of each file that `ENTRIES` need, by its name without `.py`; imports among them are relative.

    An entry names every file that it needs: of a folder, transformers 4 copies those alone that an entry imports itself.
    """
    sources: dict[str, str] = {}
    imports: dict[str, set[str]] = {}
    entries = {entry.partition(".")[0] for entry in ENTRIES.values()}
    wanted = list(entries)
    while wanted:
        name = wanted.pop()
        if name not in sources:
            source = (Path(__file__).parent / f"{name}.py").read_text()
            imported = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
            imports[name] = {
                module.removeprefix("refbert.") for module in imported if module and module.startswith("refbert.")
            }
            wanted += imports[name]
            sources[name] = HEADER.format(name=name) + source.replace("\nfrom refbert.", "\nfrom .")
    for name in entries:
        needed = set(imports[name])
        while more := {each for known in needed for each in imports[known]} - needed:
            needed |= more
        if beyond := sorted(needed - imports[name]):
            sources[name] += BEYOND + "".join(f"    from .{each} import __name__\n" for each in beyond)
    return dict(sorted(sources.items()))


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _write(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
