"""A correction is saved and read whole, weighs what is there, and chooses how on texts that are left out."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refbert.correction import Correction, References, choose_kriging, principal_components, residuals_of, shorten
from refbert.errors import InputError
from refbert.global_part import GlobalPartOptions, Rows, fit_global_part
from refbert.references import sentence_vector, word_table
from refbert.words import WordVectors

DIM, WORDS, STORED = 12, 8, 600
OPTIONS = GlobalPartOptions(landmarks=100, tau=0.4)


@pytest.fixture(scope="module")
def rows():
    """A teacher that adds to its student's vector something of its own for each of 150 topics, near by words: 600 and 200."""
    torch.manual_seed(0)
    topic = torch.randint(150, (800,))
    student = torch.randn(800, DIM)
    words = F.normalize(torch.randn(150, WORDS)[topic] + 0.1 * torch.randn(800, WORDS), dim=-1)
    every = Rows(student, words, 5 * (student + 2 * torch.randn(150, DIM)[topic] + 0.2 * torch.randn(800, DIM)))
    return Rows(*(column[:STORED] for column in every)), Rows(*(column[STORED:] for column in every))


def fitted_on(stored):
    def chunks():
        return (Rows(*(column[start : start + 100] for column in stored)) for start in range(0, len(stored.words), 100))

    fitted = fit_global_part(chunks, OPTIONS)
    return fitted, lambda: (residuals_of(fitted, some) for some in chunks())


@pytest.fixture(scope="module")
def memory(rows):
    """The correction, and the stored texts' vectors, residuals and words, in the teacher's units."""
    stored, _ = rows
    fitted, residuals = fitted_on(stored)
    chosen = choose_kriging(fitted.part, residuals, 8, sample=300)
    correction = Correction("0123456789ab", "v1", fitted.part, chosen.tau, chosen.noise, chosen.references)
    residual = torch.cat([chunk.residual for chunk in residuals()]) * fitted.part.teacher_norm
    return correction, References(stored.teacher, residual, stored.words), chosen


def nearest(stored, asked, count=8):
    """The stored texts that are nearest by words, as an index finds them."""
    places = (asked.words @ stored.words.T).topk(count).indices
    return References(*(column[places] for column in stored))


def similarity(said, rows):
    return float(F.cosine_similarity(said, rows.teacher, dim=-1).mean())


def test_near_references_bring_texts_apart_closer_by_what_left_out_texts_promised(rows, memory):
    (_, apart), (correction, stored, chosen) = rows, memory
    references = nearest(stored, apart)
    without = correction.answer(apart.student, apart.words)
    answers = correction.answer(apart.student, apart.words, references)
    gained = similarity(answers.vector, apart) - similarity(without.vector, apart)
    assert chosen.references == 8
    assert gained > 0.1
    assert gained == pytest.approx(chosen.after - chosen.before, abs=0.03)
    shuffled = References(references.vectors, references.residuals.flip(0), references.words)
    assert similarity(correction.answer(apart.student, apart.words, shuffled).vector, apart) < similarity(
        without.vector, apart
    )


def test_a_text_and_a_reference_of_which_the_maps_say_the_same_are_at_nearness_one(rows, memory):
    (_, apart), (correction, _, _) = rows, memory
    said = correction.answer(apart.student, apart.words).vector
    residuals = torch.randn(len(said), 1, DIM)
    likewise = References(said[:, None] + residuals, residuals, apart.words[:, None])
    nearness = correction.answer(apart.student, apart.words, likewise).nearness
    torch.testing.assert_close(nearness, torch.ones(len(said)), atol=1e-5, rtol=0)


def test_a_reference_that_is_not_there_changes_nothing(rows, memory):
    (_, apart), (correction, stored, _) = rows, memory
    references = nearest(stored, apart)
    padded = [torch.cat([column, torch.full_like(column[:, :3], torch.nan)], 1) for column in references]
    two = [correction.answer(apart.student, apart.words, References(*columns)) for columns in (references, padded)]
    torch.testing.assert_close(two[0].vector, two[1].vector)
    torch.testing.assert_close(two[0].nearness, two[1].nearness)
    assert not two[1].weights[:, 8:].any()
    nothing = References(*(torch.full_like(column, torch.nan) for column in references))
    answer = correction.answer(apart.student, apart.words, nothing)
    torch.testing.assert_close(answer.vector, correction.answer(apart.student, apart.words).vector)
    assert (answer.nearness == -1).all()
    assert (answer.variance == 1).all()


def test_a_stored_text_is_near_itself_and_a_strange_one_far(memory, rows):
    (stored_rows, _), (correction, stored, _) = rows, memory
    itself = correction.answer(stored_rows.student, stored_rows.words, References(*(c[:, None] for c in stored)))
    strange = correction.answer(-stored_rows.student, -stored_rows.words, References(*(c[:, None] for c in stored)))
    assert itself.nearness.mean() > 0.9 > 0.3 > strange.nearness.mean()
    assert itself.variance.mean() < 0.3 < 0.8 < strange.variance.mean()


def test_neighbours_that_say_nothing_are_not_read():
    torch.manual_seed(0)
    student, words = torch.randn(STORED, DIM), F.normalize(torch.randn(STORED, WORDS), dim=-1)
    fitted, residuals = fitted_on(Rows(student, words, student + 0.5 * torch.randn(STORED, DIM)))
    chosen = choose_kriging(fitted.part, residuals, 8)
    assert (chosen.references, chosen.before) == (0, chosen.after)
    correction = Correction("s", "v", fitted.part, chosen.tau, chosen.noise, chosen.references)
    reference = References(student[:5, None], torch.ones(5, 1, DIM), words[:5, None])
    answer = correction.answer(student[:5], words[:5], reference)
    torch.testing.assert_close(answer.vector, correction.answer(student[:5], words[:5]).vector)


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_few_rows_are_enough(num_rows):
    torch.manual_seed(0)
    rows = Rows(
        torch.randn(num_rows, DIM), F.normalize(torch.randn(num_rows, WORDS), dim=-1), torch.randn(num_rows, DIM)
    )
    fitted, residuals = fitted_on(rows)
    assert choose_kriging(fitted.part, residuals, 8).references in (0, 8)


def test_a_correction_is_read_back_from_its_bytes(rows, memory):
    (_, apart), (correction, stored, _) = rows, memory
    back = Correction.from_bytes(correction.to_bytes())
    assert [getattr(back, field.name) for field in dataclasses.fields(back) if field.name != "part"] == [
        getattr(correction, field.name) for field in dataclasses.fields(correction) if field.name != "part"
    ]
    assert back.num_bytes == correction.num_bytes
    assert correction.to_bytes() == correction.to_bytes()
    references = nearest(stored, apart)
    said, again = (one.answer(apart.student, apart.words, references).vector for one in (correction, back))
    assert F.cosine_similarity(said, again).min() > 0.9999


@pytest.mark.parametrize("damage", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_what_is_no_correction_is_refused_in_one_line(damage, memory):
    with pytest.raises(InputError, match=r"cannot be read .* adapt the memory again"):
        Correction.from_bytes(damage)
    with pytest.raises(InputError, match="adapt the memory again"):
        Correction.from_bytes(memory[0].to_bytes()[:-5])


def test_a_correction_with_nan_is_refused(memory):
    correction = memory[0]
    broken = dataclasses.replace(correction, part=type(correction.part)(DIM, WORDS, 1, 0.4))
    broken.part.bias[3] = torch.nan
    with pytest.raises(InputError, match="holds NaN"):
        Correction.from_bytes(broken.to_bytes())


def test_word_vectors_in_torch_are_those_that_are_stored():
    random = np.random.default_rng(0)
    table, special = word_table(random.standard_normal((50, WORDS)).astype(np.float32)), [0, 1, 2]
    ids = random.integers(0, 50, (7, 9)).astype(np.int32)
    ids[3] = 1  # special tokens only
    mask = np.arange(9) < random.integers(1, 10, 7)[:, None]
    found = WordVectors(table, special)(torch.from_numpy(ids), torch.from_numpy(mask))
    wanted = [sentence_vector(row[seen], special, table) for row, seen in zip(ids, mask, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(wanted), atol=1e-6)


@pytest.fixture(scope="module")
def shortening():
    """A correction with the components of vectors that vary in three directions most, and such vectors apart."""
    torch.manual_seed(0)
    spread = torch.tensor([4.0, 3.0, 2.0, *[0.1] * (DIM - 3)])
    turned = torch.linalg.qr(torch.randn(DIM, DIM)).Q
    stored, apart = ((torch.randn(count, DIM) * spread) @ turned.T for count in (500, 100))
    components = principal_components(iter(stored.split(90)))
    rows = Rows(torch.randn(40, DIM), F.normalize(torch.randn(40, WORDS), dim=-1), torch.randn(40, DIM))
    return Correction("s", "v", fitted_on(rows)[0].part, 0.4, 0.1, 0, components=components), stored, apart


def cosines(vectors):
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def test_vectors_are_shortened_to_the_memorys_principal_components_which_keep_their_cosines(shortening):
    correction, stored, apart = shortening
    _, _, directions = torch.linalg.svd(F.normalize(stored, dim=-1).double(), full_matrices=False)
    wanted = F.normalize(apart @ directions[:3].T.float(), dim=-1)
    found = shorten(apart, 3, correction)
    torch.testing.assert_close(found.abs(), wanted.abs(), atol=1e-5, rtol=1e-4)  # a direction has no sign
    torch.testing.assert_close(cosines(found), cosines(wanted), atol=1e-5, rtol=1e-4)
    assert (cosines(found) - cosines(apart)).abs().mean() < 0.01 < (cosines(apart[:, :3]) - cosines(apart)).abs().mean()
    torch.testing.assert_close(cosines(shorten(apart, DIM, correction)), cosines(apart), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(100))
    torch.testing.assert_close(
        principal_components([stored])[:, :3], correction.components[:, :3], atol=1e-4, rtol=1e-4
    )


def test_components_are_saved_with_the_correction_and_one_without_them_is_still_read(shortening, memory):
    correction, _, apart = shortening
    back = Correction.from_bytes(correction.to_bytes())
    assert F.cosine_similarity(shorten(apart, 5, back), shorten(apart, 5, correction)).min() > 0.99999
    assert Correction.from_bytes(memory[0].to_bytes()).components is None
    for damaged, says in ((torch.full((DIM, DIM), torch.nan), "holds NaN"), (torch.zeros(DIM, 3), r"shape \(12, 3\)")):
        with pytest.raises(InputError, match=says):
            Correction.from_bytes(dataclasses.replace(correction, components=damaged).to_bytes())


def test_vectors_that_cannot_be_shortened_are_refused_in_one_line(shortening, memory):
    correction, _, apart = shortening
    for dimensions, by, says in (
        (13, correction, "cannot be cut to 13: give 1 to 12"),
        (0, correction, "cannot be cut to 0: give 1 to 12"),
        (3, None, "adapted to none"),
        (3, memory[0], "adapt it again"),
    ):
        with pytest.raises(InputError, match=says) as refused:
            shorten(apart, dimensions, by)
        assert "\n" not in str(refused.value)
