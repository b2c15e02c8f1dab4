"""Whether a teacher's vector of a text is the mean of its token states or the first one: as its options or its files say.

sentence-transformers lists a model's modules in `modules.json`; the one that pools says how in a `config.json` of its own. A
model without these files is pooled by the mean; one that makes its vectors otherwise is refused. The pooling itself is done in
`teacher.py` and `student.py`.
"""

import json
from pathlib import Path
from typing import Any, cast, get_args

from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from transformers.utils import cached_file

from refbert.config import Pooling, TeacherConfig
from refbert.errors import InputError, UnavailableError
from refbert.hub import loading_options
from refbert.packaged import local_path

BEFORE = "pooling_mode_"
AFTER = ("_tokens", "_token")
"""Around a mode's name, in files written before sentence-transformers 5: one switch for each mode, such as
pooling_mode_cls_token."""

TAKEN_AS_THEY_ARE = ("Transformer", "Pooling", "Normalize")
"""Modules that leave a vector's direction alone."""


def pooling_of(config: TeacherConfig) -> Pooling:
    """Return how a teacher's states become a vector. Raises InputError where its files say what no student is taught."""
    if config.pooling != "auto":
        return config.pooling
    modules = _read(config.model, "modules.json")
    if modules is None:
        return "mean"
    wanted = "set teacher.pooling=mean or teacher.pooling=cls to take its states so"
    try:
        if not isinstance(modules, list):
            raise TypeError
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        pooling = next((module["path"] for module, kind in zip(modules, kinds, strict=True) if kind == "Pooling"), None)
        if further := [kind for kind in kinds if kind not in TAKEN_AS_THEY_ARE]:
            raise InputError(
                f"teacher.model={config.model} makes its vectors by a further module ({further[0]}), which no student learns; "
                f"{wanted}"
            )
        modes = _modes((_read(config.model, f"{pooling}/config.json") if pooling else None) or {})
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"teacher.model={config.model}: modules.json is not sentence-transformers'; {wanted}"
        ) from None
    if len(modes) != 1 or modes[0] not in get_args(Pooling):
        raise InputError(
            f"teacher.model={config.model} pools by {' and '.join(modes)}, which no student does; {wanted}"
        )
    return cast(Pooling, modes[0])


def _modes(options: dict[str, Any]) -> list[str]:
    mode = options.get("pooling_mode")
    if mode is None:
        mode = [_name_of(key) for key, is_on in options.items() if key.startswith(BEFORE) and is_on]
    return [mode] if isinstance(mode, str) else list(mode) or ["mean"]


def _name_of(switch: str) -> str:
    name = switch.removeprefix(BEFORE)
    return next((name.removesuffix(end) for end in AFTER if name.endswith(end)), name)


def _read(model: str, name: str) -> Any:
    """Return what a JSON file of a model holds, None where it has no such file.

    Raises UnavailableError where that cannot be known: a model whose weights alone are cached, and no Hub.
    """
    path = local_path(model)
    options = {key: value for key, value in loading_options(model).items() if key != "trust_remote_code"}
    file = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
    if file is None:
        if Path(path).exists() or try_to_load_from_cache(path, name) is _CACHED_NO_EXIST:
            return None
        raise UnavailableError(
            f"how teacher.model={model} makes a text's vector is in its {name}, which is not cached, and the Hub at {ENDPOINT} "
            "is not to be asked or does not answer; try again when it does, or set teacher.pooling=mean or teacher.pooling=cls"
        )
    try:
        with open(file, encoding="utf-8") as opened:
            return json.load(opened)
    except (OSError, ValueError) as error:
        raise InputError(
            f"teacher.model={model}: {name} cannot be read ({error}); mend it, or set teacher.pooling=mean or cls"
        ) from None
