"""The command `refbert`: a student and a memory from a shell, wherever the package is installed.

    refbert encode runs/x/student "a text" --references http://qdrant:6334
    refbert explain runs/x/student "a text" --references ./store
    refbert adopt runs/x/student docs --url http://qdrant:6334 --text-field page_content
    refbert store info ./store

The verbs that train a student and serve one run from a checkout (docs/decisions/0012-extras.md). Exit codes are 2 for bad
input, 3 where something cannot be reached or is not installed, and 141 where nobody reads the output to its end; the verb
`store` ends as `python -m vector_store` does. What needs torch is imported by the verb that needs it: `--help` does not wait
for it.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from refbert.errors import InputError, UnavailableError

BAD, UNAVAILABLE, UNREAD = 2, 3, 141
"""Exit codes, as of the verbs of a checkout; the last where nobody reads the output to its end, as in a pipe to `head`."""

MEMORY_PACKAGES = {"grpc", "pyarrow", "pybase64", "qdrant_client", "qdrant_edge", "tqdm"}
"""What the extra `memory` brings, by the names of modules."""

STORE = "refbert store"

ADOPTING = {
    "adapt.adopt.text_field": "--text-field", "adapt.adopt.vector": "--vector", "teacher.model": "--teacher",
    "store.collection": "--memory", "adapt.adopt.collection": "COLLECTION",
}  # fmt: skip
"""Options of `adopt`, by the names that the library's errors have for them: those of a run's YAML."""

app = typer.Typer(
    help="A student and its memory.", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)

Folder = Annotated[Path, typer.Argument(help="A student/ folder, or a copy of one.", show_default=False)]
References = Annotated[
    str | None,
    typer.Option(help="Its memory: a store's directory, or http(s)://host:port; its key is in $QDRANT_API_KEY."),
]
Device = Annotated[str, typer.Option(help="Where the student runs, such as cuda.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Cut texts here; by default where its teacher's were cut.")]


def main() -> None:
    """Run the command line."""
    app()


def _show_version(is_asked: bool) -> None:
    if is_asked:
        import refbert

        print(f"refbert {refbert.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A student and its memory."""


@app.command()
def encode(
    folder: Folder,
    texts: Annotated[list[str] | None, typer.Argument(help="By default each line of standard input is a text.")] = None,
    references: References = None,
    output: Annotated[Path | None, typer.Option(help="Write an .npy of (texts, dim) instead of JSON lines.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts of one forward.")] = 32,
    tokens: Tokens = None,
    dimensions: Annotated[
        int | None,
        typer.Option(min=1, help="Shorter vectors of an adapted student: so many principal components of its memory."),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Print texts' vectors as JSON lines.

    Each line has `text` and `embedding`, which is L2-normalised.
    """
    with _one_line_errors():
        if output and output.suffix != ".npy":
            raise InputError(f"--output {output} is no .npy; leave it out for JSON lines")
        asked = texts or [line.rstrip("\n") for line in sys.stdin]
        if not asked:
            raise InputError("there is no text to encode; give texts, or one a line on standard input")
        with _opened(folder, references, device, tokens, batch) as student:
            vectors = student.encode(asked, dimensions)
        if output:
            import numpy as np

            from refbert.atomic import whole_file

            with whole_file(output) as scratch, scratch.open("wb") as stream:
                np.save(stream, vectors)
            return
        for text, vector in zip(asked, vectors.tolist(), strict=True):
            print(json.dumps({"text": text, "embedding": vector}, ensure_ascii=False))


@app.command()
def explain(
    folder: Folder,
    text: Annotated[str, typer.Argument(help="The text to explain.", show_default=False)],
    text_pair: Annotated[str | None, typer.Option(help="Its second text.")] = None,
    references: References = None,
    tokens: Tokens = None,
    device: Device = "cpu",
) -> None:
    """Print what a text read as JSON.

    Its references, their weight or attention, and how the answer changes without them.
    """
    with _one_line_errors():
        from refbert.passages import normalise

        asked = normalise(text if text_pair is None else (text, text_pair))
        if not all(asked if isinstance(asked, tuple) else (asked,)):
            raise InputError('there is no text to explain; give "a text" (and --text-pair "its second")')
        with _opened(folder, references, device, tokens, text=True) as student:
            from refbert.memory.explanation import explained

            print(json.dumps(explained(student, asked), indent=2, ensure_ascii=False))


@app.command()
def adopt(
    folder: Folder,
    collection: Annotated[
        str, typer.Argument(help="A Qdrant collection of its teacher's embeddings.", show_default=False)
    ],
    url: Annotated[
        str,
        typer.Option(
            help="Its server, by gRPC: http(s)://host:6334, its key in $QDRANT_API_KEY; or an embedded store's directory.",
            show_default=False,
        ),
    ],
    references: Annotated[
        str | None, typer.Option(help="Where the memory is made: a store's directory, or a server; by default there.")
    ] = None,
    memory: Annotated[str, typer.Option(help="The memory's name.")] = "adapted",
    text_field: Annotated[str, typer.Option(help="Payload field with the text; with dots a nested one.")] = "text",
    vector: Annotated[str | None, typer.Option(help="Name of the vector, where there are several.")] = None,
    teacher: Annotated[str, typer.Option(help="Hub id or folder of the student's teacher.")] = "pypi:all-MiniLM-L6-v2",
    device: Device = "cpu",
) -> None:
    """Adapt a student to an index that there is, and print what it gains as JSON.

    Such as LangChain's (--text-field page_content). Its points are copied; the teacher encodes a sample of their texts, to see
    that the vectors are its own. The student's folder gets the maps.

    `left_out` is the mean cosine to the teacher's vectors, where each stored text is answered as if it were not stored: by the
    student alone, by the maps, which need no look-up, and with references.
    """
    with _one_line_errors(ADOPTING):
        _require_memory()
        from pydantic import ValidationError
        from transformers.utils.logging import disable_progress_bar

        from refbert.config import AdaptConfig, AdoptConfig, TeacherConfig
        from refbert.folder import load_model
        from refbert.memory.adoption import adopted
        from refbert.memory.reader import text_tokens
        from vector_store.config import StoreConfig
        from vector_store.location import connect_to

        disable_progress_bar()
        shape = load_model(folder).config
        most = text_tokens(shape)
        try:
            taking = AdoptConfig(collection=collection, vector=vector, text_field=text_field)
            options = AdaptConfig(collection=memory, adopt=taking)
        except ValidationError as error:
            (first, *_) = error.errors()
            raise InputError(f"{first['input']!r}: {first['msg']}") from None
        told = TeacherConfig(model=teacher, pooling=shape.pooling, **({"tokens": most} if most else {}))
        with (
            connect_to(url, StoreConfig()) as theirs,
            connect_to(references or url, StoreConfig(), create=True) as client,
        ):
            print(json.dumps(adopted(folder.absolute(), theirs, client, options, told), indent=2))


def _verbs(incomplete: str) -> list[tuple[str, str]]:
    """Return the verbs of a store that begin so, with their help, for a shell's completion."""
    from vector_store.arguments import HELP

    return [(verb, text) for verb, text in HELP.items() if verb.startswith(incomplete)]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Serve, show and administer a memory.",
)
def store(
    context: typer.Context,
    verb: Annotated[str | None, typer.Argument(autocompletion=_verbs, help="info, verify, export, ...")] = None,
) -> None:
    """Hand everything to `python -m vector_store`."""
    from vector_store.__main__ import main as run_verb

    raise typer.Exit(run_verb([*([verb] if verb else ["--help"]), *context.args], program=STORE))


def _require_memory() -> None:
    """Miss the extra `memory`, if it is missing, before torch is waited for."""
    import vector_store.client  # noqa: F401


@contextmanager
def _opened(
    folder: Path, references: str | None, device: str, tokens: int | None, batch: int = 32, text: bool = False
) -> Iterator[Any]:
    from transformers.utils.logging import disable_progress_bar

    from refbert.memory.opening import load

    disable_progress_bar()
    with load(folder, references, device, tokens, batch, text=text) as student:
        yield student


@contextmanager
def _one_line_errors(names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what a user or a machine can cause into one line on standard error, and an exit code.

    `names` are the options of a command by what a run's YAML calls them.
    """
    from vector_store.errors import StoreError, StoreUnavailable

    def say(error: Exception) -> None:
        line = str(error)
        for before, option in (names or {}).items():
            line = line.replace(before, option)
        typer.echo(line, err=True)

    try:
        yield
        sys.stdout.flush()  # where nobody reads it, that is said here
    except (UnavailableError, StoreUnavailable) as error:
        say(error)
        raise typer.Exit(UNAVAILABLE) from None
    except ModuleNotFoundError as error:
        if error.name not in MEMORY_PACKAGES:
            raise
        typer.echo(f"a memory needs {error.name}, which is not installed: pip install 'refbert[memory]'", err=True)
        raise typer.Exit(UNAVAILABLE) from None
    except BrokenPipeError:
        # Else the interpreter says so once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(UNREAD) from None
    except (InputError, StoreError, OSError) as error:  # OSError: such as a folder that cannot be written
        say(error)
        raise typer.Exit(BAD) from None
