"""The manifest of a memory: which teacher wrote it and in which shape. Made for a teacher, or read from what a student saved.

A trained student's config also says how the student looks up its references; so does its correction. Compares nothing: the
store holds a manifest against a collection's.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from refbert.config import ReferenceConfig
from refbert.errors import InputError
from vector_store.schema import ANY_PROJECTION, FORMAT_VERSION, UNPROJECTED, Manifest

if TYPE_CHECKING:  # a plan waits for no torch
    from refbert.teacher import Teacher
    from refbert.teacher_outline import TeacherOutline


def manifest_of(
    teacher: "Teacher | TeacherOutline", references: ReferenceConfig, projection: str | None = None
) -> Manifest:
    """Describe what this teacher writes under these options: with this projection, or any, where they ask for one.

    Raises InputError where they ask for more tokens or a greater width than the teacher has.
    """
    for key, wanted, most in (
        ("tokens", references.tokens, teacher.config.tokens),
        ("dim", references.dim, teacher.dim),
        ("words_dim", references.words_dim, teacher.embedding_dim),
    ):
        if wanted is not None and wanted > most:
            raise InputError(f"references.{key}={wanted} exceeds the teacher's {most}; leave it out, or give less")
    is_projected = references.dim not in (None, teacher.dim)
    return Manifest(
        encoder=teacher.config.model,
        fingerprint=teacher.fingerprint,
        tokenizer=teacher.tokenizer_hash,
        layer=teacher.num_layers,
        text_tokens=teacher.config.tokens,
        tokens=(references.tokens or teacher.config.tokens) if references.states else 0,
        encoder_dim=teacher.dim,
        dim=references.dim or teacher.dim,
        datatype=references.datatype,
        projection=(projection or ANY_PROJECTION) if is_projected else UNPROJECTED,
        vector_datatype=references.vector_datatype,
        token_bytes=2 if len(teacher.tokenizer) <= 2**16 else 4,
        words_dim=(references.words_dim or teacher.embedding_dim) if references.dense_index else 0,
        bm25_k1=references.bm25_k1,
        bm25_b=references.bm25_b,
        bm25_average_tokens=references.bm25_average_tokens,
    )


def trained_manifest(saved: dict[str, Any] | None, student: str | Path) -> Manifest | None:
    """Read the manifest of the memory that a student was distilled with, from its config; None where it read none."""
    if saved is None:
        return None
    try:
        return Manifest.model_validate(saved)
    except ValidationError as error:
        raise InputError(
            f"{student} was distilled with a memory of format {saved.get('format_version')}, this release reads "
            f"{FORMAT_VERSION}; distil it again under another name=... ({_problems(error)})"
        ) from None


def trained_references(saved: dict[str, Any] | None, student: str | Path) -> ReferenceConfig | None:
    """Read how a student looks up its references, from its config; None where an earlier release wrote it, or it reads none.

    Raises InputError for options of a later release.
    """
    if saved is None:
        return None
    try:
        return ReferenceConfig.model_validate(saved)
    except ValidationError as error:
        raise InputError(
            f"{student} looks up its references with options that this release cannot read ({_problems(error)}); use the "
            "release that wrote it, or distil the student again"
        ) from None


def _problems(error: ValidationError) -> str:
    """List the fields that are wrong, with the reasons, on one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors())
