"""Whether a teacher's vector of a text is the mean of its token states or the first one: by options or the model's files.

`teacher.pooling=mean` or `cls` says so itself; with `auto` the files decide. sentence-transformers lists a model's modules in
`modules.json`; the one that pools says how in a `config.json` of its own. A model without `modules.json` is pooled by the mean;
one that makes its vectors otherwise, or does not say how, is refused. The pooling itself is done in `teacher.py`, `student.py`
and `batch.py`. Of a folder this is known in milliseconds: nothing heavy is imported.
"""

import json
import os
from pathlib import Path
from typing import Any, cast, get_args

from refbert.config import Pooling, TeacherConfig
from refbert.errors import InputError, UnavailableError
from refbert.packaged import local_path

MODULES = "modules.json"

BEFORE = "pooling_mode_"
AFTER = ("_tokens", "_token")
"""Around a mode's name, in files written before sentence-transformers 5: one switch for each mode, such as
pooling_mode_cls_token."""

TAKEN_AS_THEY_ARE = ("Transformer", "Pooling", "Normalize")
"""Modules that leave a vector's direction alone."""

ABSENT = "there is no such file"
"""In the place of a file's content, compared by identity."""

LONGEST = 60
"""Characters of a file's content that an error quotes."""


def pooling_of(config: TeacherConfig) -> Pooling:
    """Return how a teacher's states become a vector.

    Raises InputError where its files say what no student is taught or cannot be read, UnavailableError where they are on a Hub
    that does not answer.
    """
    if config.pooling != "auto":
        return config.pooling
    modules = _read(config.model, MODULES)
    if modules is ABSENT:
        return "mean"
    kinds = [
        (str(module["type"]).rpartition(".")[2], module.get("path"))
        for module in (modules if isinstance(modules, list) else ())
        if isinstance(module, dict) and "type" in module
    ]
    pooling = [path for kind, path in kinds if kind == "Pooling" and isinstance(path, str)]
    if further := [kind for kind, _ in kinds if kind not in TAKEN_AS_THEY_ARE]:
        raise _refusal(
            config.model, f"makes its vectors by a further module ({_shown(further[0])}), which no student learns"
        )
    if len(pooling) != 1 or len(kinds) != len(modules):
        raise _refusal(
            config.model, f"has a {MODULES} that does not list one Pooling module with its path: {_shown(modules)}"
        )
    name = f"{pooling[0]}/config.json".lstrip("/")
    options = _read(config.model, name)
    modes = _modes(options) if isinstance(options, dict) else []
    if len(modes) == 1 and modes[0] in get_args(Pooling):
        return cast(Pooling, modes[0])
    if modes:
        raise _refusal(config.model, f"pools by {' and '.join(map(_shown, modes))}, which no student does")
    raise _refusal(
        config.model, f"has a {MODULES} that names a Pooling module, and {name} does not say how: {_shown(options)}"
    )


def _modes(options: dict[str, Any]) -> list[str]:
    """Return the ways that a Pooling module's options name, none where they name none in either form."""
    mode = options.get("pooling_mode")
    if mode is None:
        switches = {key: is_on for key, is_on in options.items() if key.startswith(BEFORE) and isinstance(is_on, bool)}
        return [_name_of(key) for key, is_on in switches.items() if is_on] or ["mean"] * bool(switches)
    modes = [mode] if isinstance(mode, str) else mode
    return list(dict.fromkeys(modes)) if isinstance(modes, list) and all(isinstance(one, str) for one in modes) else []


def _name_of(switch: str) -> str:
    name = switch.removeprefix(BEFORE)
    return next((name.removesuffix(end) for end in AFTER if name.endswith(end)), name)


def _read(model: str, name: str) -> Any:
    """Return what a JSON file of a model holds, ABSENT where it has no such file."""
    path = local_path(model)
    file: str | Path | None = Path(path) / name if Path(path).is_dir() else _on_hub(path, name)
    try:
        if file is None or not os.path.lexists(file):
            return ABSENT
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(
            model, f"has a {_shown(name)} that cannot be read ({type(error).__name__}: {_shown(str(error))})"
        ) from None


def _on_hub(model: str, name: str) -> str | None:
    """Return where a Hub's file is kept, None where the repository has none of that name, or is none: loading it says so."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import cached_file

    from refbert.hub import loading_options

    options = {key: value for key, value in loading_options(model).items() if key != "trust_remote_code"}
    try:
        is_cached = isinstance(try_to_load_from_cache(model, "config.json"), str)
        file: str | None = cached_file(
            model,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **options,
        )
    except (OSError, HFValidationError):
        return None
    if file is None and is_cached and try_to_load_from_cache(model, name) is not _CACHED_NO_EXIST:
        raise UnavailableError(
            f"how teacher.model={model} makes a text's vector is in its {name}, which is not cached, and the Hub at "
            f"{constants.ENDPOINT} is not to be asked or does not answer; try again when it does, or set teacher.pooling=mean "
            "or teacher.pooling=cls"
        )
    return file


def _shown(content: Any) -> str:
    text = content if isinstance(content, str) and content.isprintable() and content else repr(content)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _refusal(model: str, what: str) -> InputError:
    return InputError(
        f"teacher.model={model} {what}; set teacher.pooling=mean or teacher.pooling=cls to take its states so"
    )
