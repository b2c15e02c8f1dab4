"""`from_pretrained`'s options for models and tokenizers: only its cache where the Hub does not answer, never a model's code.

A process asks each Hub once whether it answers, with one retry. Else, without a Hub, every file would be asked for six times
over most of a minute. Folders, packaged models and offline mode ask nothing.
"""

import logging
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants

from refbert.packaged import PREFIX

log = logging.getLogger(__name__)

ANSWER_S = 10.0
TRIES = 2


NO_CODE = {"trust_remote_code": False}
"""Option of `from_pretrained`: no code of a model's folder is run. Left out, transformers asks on the terminal and waits."""


def loading_options(name: str) -> dict[str, Any]:
    """Return options of `from_pretrained` for a model's Hub id or path: what is cached alone where the Hub does not answer."""
    if constants.HF_HUB_OFFLINE or name.startswith(PREFIX) or Path(name).expanduser().exists():
        return NO_CODE
    return NO_CODE if answers(constants.ENDPOINT) else {**NO_CODE, "local_files_only": True}


@cache
def answers(endpoint: str) -> bool:
    """Whether a Hub answers, with one retry; what it answers does not matter. One warning where it does not."""
    for retry in range(TRIES):
        time.sleep(retry)
        try:
            with urlopen(Request(endpoint, method="HEAD"), timeout=ANSWER_S):
                return True
        except HTTPError:
            return True
        except (URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
    log.warning("the Hub at %s does not answer (%s): only what is cached can be loaded", endpoint, reason)
    return False
