"""The student: references change its output, padding and the rest of the batch do not, and saving keeps it."""

import math
from collections.abc import Iterator
from inspect import Parameter, signature

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from refbert import RefBertConfig, RefBertForSequenceClassification, RefBertModel
from refbert.student import masked_mean
from refbert.student_layers import ReadOut

DIM, VOCABULARY = 16, 50


def make_student(**options) -> RefBertModel:
    torch.manual_seed(0)
    config = RefBertConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, dim=DIM,
        initializer_range=0.2, **options,
    )  # fmt: skip
    student = RefBertModel(config).eval()
    for name, gates in student.named_parameters():
        if name.endswith(".gate"):
            torch.nn.init.uniform_(gates, -1, 1)  # as after some training: untrained gates are closed
    return student


def make_inputs(lengths: list[int], ref_lengths: list[int], seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, ref_tokens = len(lengths), max(lengths), max(max(ref_lengths), 1)
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    ref_mask = torch.arange(ref_tokens)[None] < torch.tensor(ref_lengths)[:, None]
    return {
        "input_ids": torch.randint(1, VOCABULARY, (batch, tokens), generator=generator) * mask,
        "attention_mask": mask.long(),
        "reference_ids": torch.randint(1, VOCABULARY, (batch, ref_tokens), generator=generator) * ref_mask,
        "reference_states": torch.randn(batch, ref_tokens, DIM, generator=generator) * ref_mask[..., None],
        "reference_mask": ref_mask.long(),
    }


OPTIONS = [
    {"reference_layers": layers, "reference_mode": mode, "reference_keys": keys}
    for layers in ("first", "all", [1])
    for mode in ("concat", "replace")
    for keys in ("states", "embedding")
] + [
    {"reference_layers": layers, "reference_readout": True, "reference_gate": gate}
    for layers in ("all", [])
    for gate in (False, True)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_batch_results_equal_single_results(options):
    student = make_student(**options)
    inputs = make_inputs([7, 3, 5], [4, 6, 0])
    together = student(**inputs)
    for row in range(3):
        length, ref_length = int(inputs["attention_mask"][row].sum()), int(inputs["reference_mask"][row].sum())
        alone = student(
            input_ids=inputs["input_ids"][row : row + 1, :length],
            reference_ids=inputs["reference_ids"][row : row + 1, :ref_length] if ref_length else None,
            reference_states=inputs["reference_states"][row : row + 1, :ref_length] if ref_length else None,
        )
        torch.testing.assert_close(together.sentence_embedding[row], alone.sentence_embedding[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            together.projected_states[row, :length], alone.projected_states[0], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_the_content_of_the_reference_changes_the_output(options):
    student = make_student(**options)
    inputs = make_inputs([5], [4])
    other = {**inputs, "reference_states": inputs["reference_states"].flip(-1)}
    without = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    answer = student(**inputs).sentence_embedding
    assert not torch.allclose(answer, student(**other).sentence_embedding, atol=1e-4)
    assert not torch.allclose(answer, student(**without).sentence_embedding, atol=1e-4)


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"reference_mode": "none"}], ids=lambda o: "-".join(map(str, o.values()))
)
def test_a_fused_student_gives_the_same_output(options):
    student = make_student(**options)
    inputs = make_inputs([7, 3, 5], [4, 6, 0])
    wanted = student(**inputs)
    answer = student.fuse()(**inputs, output_projected_states=False)
    assert answer.projected_states is None
    torch.testing.assert_close(answer.last_hidden_state, wanted.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer.sentence_embedding, wanted.sentence_embedding, atol=1e-5, rtol=1e-5)
    averaged = masked_mean(wanted.projected_states, inputs["attention_mask"])
    torch.testing.assert_close(answer.sentence_embedding, averaged, atol=1e-5, rtol=1e-5)


def test_a_row_whose_reference_is_masked_reads_the_null_reference():
    student = make_student()
    masked = make_inputs([5, 4], [3, 0])
    without = {key: masked[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(
        student(**masked).sentence_embedding[1], student(**without).sentence_embedding[1], atol=1e-6, rtol=1e-6
    )


def test_the_null_reference_is_learned_only_from_rows_without_a_reference():
    student = make_student()
    student(**make_inputs([5], [3])).sentence_embedding.sum().backward()
    assert student.null_reference.grad.abs().sum() == 0
    student(**make_inputs([5], [0])).sentence_embedding.sum().backward()
    assert student.null_reference.grad.abs().sum() > 0


def test_the_readout_mixes_states_by_its_attention():
    """One token, one head, two reference tokens: the weights by hand."""
    torch.manual_seed(0)
    config = RefBertConfig(hidden_size=3, num_attention_heads=1, dim=2, readout_heads=1, readout_width=2)
    readout = ReadOut(config)
    with torch.no_grad():
        readout.query.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
        readout.query.bias.zero_()
        readout.key.weight.copy_(torch.eye(2))
        readout.null.fill_(0.5)
        readout.match.fill_(2.0)
    states = torch.tensor([[[3.0, 1.0], [0.0, 8.0]]])  # normalised: (1, -1) and (-1, 1)
    own = torch.tensor([[[10.0, 20.0]]])
    hidden, ids = torch.tensor([[[1.0, 2.0, 7.0]]]), torch.tensor([[5]])
    said, scores = readout(hidden, own, ids, torch.tensor([[4, 5]]), states, torch.ones(1, 2))
    shares = torch.tensor([0.5, -1 / 2**0.5, 1 / 2**0.5 + 2]).softmax(0)
    wanted = shares[0] * own[0, 0] + shares[1] * states[0, 0] + shares[2] * states[0, 1]
    torch.testing.assert_close(said[0, 0], wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.softmax(-1)[0, 0, 0], shares, atol=1e-4, rtol=1e-4)
    masked, _ = readout(hidden, own, ids, torch.tensor([[4, 5]]), states, torch.zeros(1, 2))
    assert torch.equal(masked, own)


def test_closed_gates_read_nothing_and_have_gradients():
    student = make_student(reference_gate=True, reference_readout=True)
    gates = [parameter for name, parameter in student.named_parameters() if name.endswith(".gate")]
    for gate in gates:
        torch.nn.init.zeros_(gate)
    inputs = make_inputs([5, 4], [4, 0])
    without = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    said = student(**inputs).projected_states
    torch.testing.assert_close(said, student(**without).projected_states, atol=1e-6, rtol=0)
    said.square().sum().backward()
    assert len(gates) == 3
    assert all(gate.grad.isfinite().all() and gate.grad.abs().max() > 0 for gate in gates)


def test_the_scores_of_a_gated_layer_give_its_shares():
    """The scores of a trace are such that one softmax gives own tokens 1 and the reference |tanh(gate)|, normalised."""
    student = make_student(reference_gate=True)
    output = student(**make_inputs([5], [4]), output_attentions=True)
    for layer, scores in zip(student.layers, output.attention_scores, strict=True):
        opened = layer.attention.gate.tanh().abs()
        shares = scores.softmax(-1)[0, :, :, 5:].sum(-1)
        torch.testing.assert_close(shares, (opened / (1 + opened))[:, None].expand_as(shares), atol=1e-5, rtol=1e-5)


def test_mode_none_has_no_reference_parameters_and_ignores_references():
    student = make_student(reference_mode="none")
    assert not [name for name, _ in student.named_parameters() if "reference" in name]
    inputs = make_inputs([5], [4])
    without = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(student(**inputs).sentence_embedding, student(**without).sentence_embedding)


@pytest.mark.parametrize(
    "options", [*OPTIONS, {"reference_mode": "none"}], ids=lambda o: "-".join(map(str, o.values()))
)
def test_attention_step_by_step_equals_fused_attention(options):
    student = make_student(**options)
    inputs = make_inputs([7, 3, 5], [4, 6, 0])
    fused, traced = student(**inputs), student(**inputs, output_attentions=True, output_qkv=True)
    assert fused.attention_scores is None
    assert fused.qkv is None
    torch.testing.assert_close(traced.projected_states, fused.projected_states, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        student(**inputs, output_qkv=True).projected_states, fused.projected_states, atol=1e-5, rtol=0
    )
    assert len(traced.attention_scores) == 2
    own = inputs["attention_mask"].bool()
    slots = torch.tensor(
        [[0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0, 0]]
    ).bool()  # null slot first
    for layer, scores in enumerate(traced.attention_scores):
        reads, replaces = student.config.reads_reference(layer), student.config.reference_mode == "replace"
        seen = torch.cat([own] * (not (reads and replaces)) + [slots] * reads, 1)
        assert torch.equal(scores.isfinite(), seen[:, None, None, :].expand_as(scores))
        assert scores.shape[1:3] == (4, 7)


def test_scores_of_the_last_layer_follow_from_its_queries_and_keys():
    student = make_student()
    output = student(**make_inputs([7, 3], [4, 6]), output_attentions=True, output_qkv=True)
    queries, keys, values = output.qkv
    assert values.shape == (2, 7, 24)
    for head in range(4):
        part = slice(6 * head, 6 * head + 6)
        wanted = queries[0, :, part] @ keys[0, :, part].T / math.sqrt(6)
        torch.testing.assert_close(output.attention_scores[-1][0, head, :, :7], wanted)
    assert make_student(reference_mode="replace")(**make_inputs([3], [2]), output_qkv=True).qkv is None


def test_the_default_shape_has_the_papers_number_of_parameters():
    """TinyBERT-4 has 14.35 M parameters; the first layer's two 768 -> 312 projections beside its own make 7.38x."""
    with torch.device("meta"):
        bert_base = sum(p.numel() for p in BertModel(BertConfig()).parameters())
        tiny = RefBertModel(RefBertConfig(reference_mode="none"))
        paper = RefBertModel(RefBertConfig(reference_layers="first"))
        factorised = RefBertModel(RefBertConfig(reference_layers="first", embedding_size=128))
    pooler = 312 * 312 + 312  # the published counts include one, which this student has not
    assert bert_base == 109_482_240
    assert count(tiny) + pooler == 14_350_248
    reads = 2 * (768 * 312 + 312) + 768  # key, value, null reference
    assert count(paper) + pooler == 14_350_248 + reads
    assert bert_base / (count(paper) + pooler) == pytest.approx(7.382, abs=0.001)
    assert count(factorised) == count(paper) - 30522 * 312 + 30522 * 128 + 128 * 312
    assert bert_base / (count(factorised) + pooler) >= 10


def count(model: torch.nn.Module) -> int:
    """Parameters without the projection into the teacher's space, which TinyBERT too drops after training."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("projection"))


@pytest.mark.parametrize(
    "options", [{}, {"embedding_size": 8}, {"reference_layers": [1], "memory": {"fingerprint": "abc"}}]
)
def test_a_saved_student_loads_with_auto_model_and_gives_the_same_output(tmp_path, options):
    student = make_student(**options)
    student.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, RefBertModel)
    assert loaded.config.memory == student.config.memory
    inputs = make_inputs([6, 2], [3, 4])
    assert torch.equal(student(**inputs).sentence_embedding, loaded(**inputs).sentence_embedding)


@pytest.mark.parametrize(("labels", "num_labels"), [([0, 2], 3), ([0.5, -1.0], 1)])
def test_a_classifier_learns_saves_and_loads(tmp_path, labels, num_labels):
    torch.manual_seed(0)
    config = RefBertConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, dim=DIM,
        num_labels=num_labels,
    )  # fmt: skip
    model = RefBertForSequenceClassification(config).eval()
    inputs = make_inputs([6, 2], [3, 4])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        output = model(**inputs, labels=torch.tensor(labels))
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)
    # A product with one output depends, in its last bit, on how its inputs lie in memory (seen on an AMD EPYC).
    torch.testing.assert_close(model(**inputs).logits, loaded(**inputs).logits, atol=1e-6, rtol=1e-6)


def test_reference_states_of_another_width_are_refused():
    student = make_student()
    inputs = make_inputs([5], [4])
    inputs["reference_states"] = inputs["reference_states"][..., :-1]
    with pytest.raises(ValueError, match="width 15, this student reads 16"):
        student(**inputs)


@pytest.mark.parametrize("kind", [RefBertModel, RefBertForSequenceClassification])
def test_an_unknown_input_is_refused_and_the_nearest_known_one_is_named(kind):
    student = kind(
        RefBertConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, dim=DIM)
    )
    inputs = make_inputs([5], [4])
    with pytest.raises(TypeError, match="no input reference_state; did you mean reference_states"):
        student(inputs["input_ids"], reference_state=inputs["reference_states"])
    for name in ("position_ids", "num_items_in_batch"):
        with pytest.raises(TypeError, match=f"no input {name}; known are input_ids, attention_mask, "):
            student(**inputs, **{name: None})


@pytest.mark.parametrize("kind", [RefBertModel, RefBertForSequenceClassification])
def test_output_options_work_as_in_transformers(kind):
    config = RefBertConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, dim=DIM)
    student, inputs = kind(config).eval(), make_inputs([5], [4])
    assert student(**inputs).hidden_states is None
    by_argument = student(**inputs, output_hidden_states=True, output_attentions=True)
    config.output_hidden_states = True
    assert len(student(**inputs).hidden_states) == len(by_argument.hidden_states) == 3
    assert student(**inputs, output_hidden_states=False).hidden_states is None
    parts = student(**inputs, output_attentions=True, return_dict=False)
    assert isinstance(parts, tuple)
    assert torch.equal(parts[0], by_argument[0])
    assert len(parts) == len(by_argument)
    config.return_dict = False
    assert isinstance(student(**inputs), tuple)


@pytest.mark.parametrize("kind", [RefBertModel, RefBertForSequenceClassification])
def test_the_signature_of_forward_names_every_input(kind):
    """transformers' Trainer drops a data set's columns that it does not name, and passes more where it takes any."""
    parameters = signature(kind.forward).parameters
    assert {"token_type_ids", "return_dict", *make_inputs([3], [2])} <= set(parameters)
    assert not [name for name, parameter in parameters.items() if parameter.kind is Parameter.VAR_KEYWORD]


def test_transformers_trainer_trains_a_classifier_with_references_and_predicts_its_logits(tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
    torch.manual_seed(0)
    model = RefBertForSequenceClassification(
        RefBertConfig(
            vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, num_attention_heads=4, dim=DIM, num_labels=3
        )
    )
    inputs = make_inputs([6, 2, 4, 5], [3, 4, 0, 2])
    rows = [{name: tensor[row] for name, tensor in inputs.items()} | {"labels": row % 3} for row in range(4)]
    options = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, use_cpu=True, report_to="none", save_strategy="no",
        activation_checkpointing=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
    before = model.encoder.layers[0].attention.reference_key.weight.clone()
    assert trainer.train().global_step == 2
    assert not torch.equal(model.encoder.layers[0].attention.reference_key.weight, before)
    predicted = torch.from_numpy(trainer.predict(rows).predictions)
    torch.testing.assert_close(predicted, model.eval()(**inputs).logits.detach(), atol=1e-5, rtol=1e-5)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # with fill_uninitialized_memory, which is on by default
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("kind", "without", "added"),
    [
        (RefBertModel, {}, {"reference_gate": True}),
        (RefBertModel, {}, {"reference_readout": True}),
        (RefBertModel, {"reference_readout": True}, {"reference_gate": True}),
        (RefBertModel, {"reference_mode": "none"}, {"reference_mode": "concat", "reference_gate": True}),
        (RefBertModel, {"reference_mode": "none"}, {"reference_mode": "replace"}),
        (RefBertModel, {"reference_keys": "embedding"}, {"reference_keys": "states"}),
        (RefBertModel, {"reference_layers": "first"}, {"reference_layers": "all"}),
        (RefBertModel, {}, {"embedding_size": 8, "ignore_mismatched_sizes": True}),
        (RefBertModel, {}, {"num_hidden_layers": 3}),
        (RefBertForSequenceClassification, {}, {"num_labels": 3}),
    ],
)
def test_parameters_that_a_checkpoint_lacks_are_initialised_on_loading(
    tmp_path, uninitialised_memory_is_nan, kind, without, added
):
    saved = make_student(**without)
    saved.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, **added)
    encoder = loaded.base_model
    before, fresh = saved.state_dict(), type(loaded)(loaded.config).state_dict()
    missing = {name for name, tensor in encoder.state_dict().items() if not _holds(before, name, tensor)}
    missing = {name if loaded is encoder else f"encoder.{name}" for name in missing}
    missing |= {name for name in loaded.state_dict() if name.startswith("classifier.")}
    assert missing
    for name in missing:
        tensor = loaded.state_dict()[name]
        assert tensor.isfinite().all(), name
        assert tensor.std(correction=0) == pytest.approx(fresh[name].std(correction=0).item(), rel=0.5, abs=1e-9), name
        if name.endswith((".gate", ".null", ".match")):
            assert torch.equal(tensor, fresh[name]), name
    if encoder.readout is not None:
        assert (encoder.readout.null == ReadOut.NULL_SCORE).all()
        assert (encoder.readout.match == 1).all()
    gates = [tensor for name, tensor in loaded.state_dict().items() if name.endswith(".gate")]
    assert bool(gates) == loaded.config.reference_gate
    assert all((gate == 0).all() for gate in gates)
    assert loaded(**make_inputs([5, 3], [4, 0]))[0].isfinite().all()


def _holds(state: dict[str, torch.Tensor], name: str, tensor: torch.Tensor) -> bool:
    return name in state and torch.equal(state[name], tensor)


@pytest.mark.parametrize(
    "options",
    [
        *OPTIONS,
        {"embedding_size": 8, "reference_mode": "none"},
        {"embedding_size": 8, "reference_readout": True, "reference_gate": True, "reference_keys": "embedding"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_init_weights_sets_every_parameter_and_buffer(options):
    """`from_pretrained` builds a model without memory: what `__init__` sets is lost, `_init_weights` has to set all."""
    config = RefBertConfig(vocab_size=VOCABULARY, hidden_size=24, num_attention_heads=4, dim=DIM, **options)
    with torch.device("meta"):
        model: PreTrainedModel = RefBertForSequenceClassification(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(torch.nan)
    model.apply(model._init_weights)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
