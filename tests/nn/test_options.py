"""Invalid arguments of the modules of `jrnn.nn` raise errors that say what to pass instead."""

import copy
import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
import jrnn.train
from jrnn import nn

RNGS = nnx.Rngs(0)
LAYER = nn.GRU(3, 4, rngs=RNGS)
# A language model of six tokens.
LM = nn.SequenceToSequence(LAYER, 6, rngs=RNGS, embedding=nnx.Embed(6, 3, rngs=RNGS))
KEY = jax.random.key(0)
CLASSIFIER: Any = nn.Classifier(LAYER, 2, rngs=RNGS)
XS = np.ones((4, 10, 3), np.float32)
H = np.zeros((1, 4, 8), np.float32)
TOKENS = np.ones((4, 10), np.int32)
LENGTHS: Any = np.array([10, 3, 2, 1])

INVALID: list[tuple[Any, str]] = [
    (lambda: nn.RNN(3, 8, rngs=RNGS), r"RNN: cell must be a cell .*got 3; the first argument is"),
    (lambda: nn.RNN(jrnn.GRU, 3, rngs=RNGS), "RNN: cell must .*class GRU; create an instance"),
    (lambda: nn.StackedRNN(jrnn.GRU, 3, rngs=RNGS), "StackedRNN: cell must be .*the class GRU"),
    (lambda: nn.RNN(jrnn.GRU(4), 3, rngs=KEY), r"RNN: rngs must be .*nnx.Rngs\(0\), got"),
    (lambda: nn.LSTM(3, 8, rngs=KEY), "LSTM: rngs must be random streams"),
    (lambda: nn.Classifier(LAYER, 2, rngs=KEY), "Classifier: rngs must be random streams"),
    (lambda: nn.Classifier(jrnn.GRU(4), 2, rngs=RNGS), r"Classifier: body must be a module such"),
    (lambda: nn.LSTM(3, 8, rngs=RNGS, batch_first=True), r"LSTM: batch_first is not an argument.*"
     "use time_major=True"),
    (lambda: nn.RNN(jrnn.GRU(4), 3, rngs=RNGS, bias=False), r"RNN: bias is not .*bias of the cell"),
    (lambda: nn.GRU(3, 8, rngs=RNGS, size=1), "^GRU: size is not an argument; the arguments are"),
    (lambda: nn.GRU(3, 8, rngs=RNGS, num_layer=1), "^GRU: num_layer is .* mean 'num_layers'\\?$"),
    (lambda: nn.GRU(3, 8, rng=RNGS), "^GRU: rng is not an argument; use rngs$"),
    (lambda: nn.LSTM(3, 8), r"^LSTM: rngs must be passed, got no value; pass rngs=nnx.Rngs\(0\)$"),
    (lambda: nn.LSTM(3, rngs=RNGS), "^LSTM: hidden_size must be passed, got no value$"),
    (lambda: nn.LSTM(3, 8, 1, True), "^LSTM: only input_size, hidden_size, num_layers may be "
     r"passed by position, got 4 .*; pass the others by name, as in rngs=nnx.Rngs\(0\)$"),
    (lambda: nn.LSTM(3, 8, input_size=3, rngs=RNGS), "^LSTM: input_size must be passed once"),
    (lambda: nn.RNN(jrnn.GRU(4), 3, rngs=RNGS, num_layers=2), "^RNN: num_layers .*StackedRNN"),
    (lambda: LAYER(XS, hx=None), "^GRU: hx is not an argument; use carry$"),
    (lambda: LAYER(XS, None, LENGTHS), "^GRU: only xs, carry may .*, as in lengths=lengths$"),
    (lambda: LAYER(XS, LENGTHS), "^GRU: carry must be an array, .*; pass the lengths .* by name"),
    (lambda: nn.LSTM(3, 8, rngs=RNGS)(XS, (H, H)), r"^LSTM: carry must be LSTMCarry\(h, c\), as in "
     r"LSTM.init_carry, got a tuple of 2 arrays; pass jrnn.LSTMCarry\(h, c\)"),
    (lambda: nn.LSTM(3, 8, rngs=RNGS)(XS, LENGTHS), "^LSTM: carry .*; pass the lengths .* by name"),
    (lambda: LAYER(XS, key=0), "^GRU: key must be one key such as"),
    (lambda: nn.Classifier(LAYER, num_classes=4, rngs=RNGS), "num_classes .*; use output_size$"),
    (lambda: nn.Classifier(LAYER, features=4, rngs=RNGS), "features .*; use output_size$"),
    (lambda: nn.Classifier(LAYER, 4), "^Classifier: rngs must be passed"),
    (lambda: CLASSIFIER(XS, LENGTHS), "^Classifier: only xs may be passed by position, got 2 .* as "
     "in lengths=lengths$"),
    (lambda: CLASSIFIER(XS, seq_lengths=LENGTHS), "^Classifier: seq_lengths .*; use lengths$"),
    (lambda: CLASSIFIER(TOKENS), r"^Classifier: xs must be floating, .*int32 of shape \(4, 10\);"
     r" for tokens pass embedding=nnx.Embed\("),
    (lambda: LAYER(TOKENS), r"^GRU: xs must be floating, of shape \(batch, time, input\), got in"),
    (lambda: nn.LSTM(3, 8, rngs=RNGS, dtype="float64"), "^LSTM: dtype must be enabled in JAX, got"),
    (lambda: nn.RNN(jrnn.GRU(4), 3, rngs=RNGS, param_dtype="float64"), "^RNN: param_dtype must be"),
    (lambda: nn.RNN(jrnn.GRU(4), 3, rngs=RNGS, dtype="flaot32"), "floating, .*got 'flaot32'$"),
    (lambda: nn.FlaxCell(jrnn.GRU(4), 3, rngs=RNGS, dtype=int), "^FlaxCell: dtype must be float"),
    (lambda: nn.FlaxCell(jrnn.GRU(4), rngs=RNGS), "^FlaxCell: input_size must be passed"),
    (lambda: nn.generate(LM, [[1]], 3), "^generate: key must be passed, got no value$"),
    (lambda: nn.stream(nn.Classifier(LAYER, 2, rngs=RNGS)), "stream: model must .*got Classifier"),
    (lambda: nn.stream(jrnn.GRU(4)), r"stream: model must be a module .*got GRU\(hidden_size=4\)"),
    (lambda: nn.generate(LAYER, [[1]], 3, key=KEY), "generate: model must be a SequenceToSequence"),
    (lambda: nn.generate(LM, [[1.0]], 3, key=KEY), "generate: prompt must be tokens of an int"),
    (lambda: nn.generate(LM, [[1]], 3, key=0), "generate: key must be one key"),
    (lambda: nn.Classifier(LAYER, 2, rngs=RNGS, embedding=3), "Classifier: embedding must be"),
    (lambda: nn.SequenceToSequence(LAYER, 2, rngs=RNGS, embedding=3), "embedding must be a module"),
    (lambda: jrnn.stack([jrnn.GRU]), r"Stack: layers\[0\] .*class GRU; create an instance"),
    (lambda: jrnn.bidirectional(jrnn.GRU), "Bidirectional: forward .*class GRU; create an inst"),
    (lambda: jrnn.transforms.layer_norm(jrnn.GRU), "LayerNorm: cell must .*class GRU; create"),
    (lambda: jrnn.transforms.dropout(LAYER, x=0.1), "Dropout: cell must be a cell such as .*, got"),
    (lambda: jrnn.LSTM(3, 8), "^LSTM: only hidden_size may be passed by position, got 2 .*init; l"),
    (lambda: jrnn.LSTM(8, num_layers=2), r"^LSTM: num_layers is not an argument; use jrnn.stack\("),
    (lambda: jrnn.LSTM(units=8), "^LSTM: units is not an argument; use hidden_size$"),
    (lambda: jrnn.LSTM(8, peephole=True), "^LSTM: peephole .*; did you mean 'peepholes'\\?$"),
    (lambda: jrnn.GRU(8).init(KEY), "^GRU.init: input_size must be passed"),
    (lambda: jrnn.stack(jrnn.GRU(8), jrnn.GRU(8)), r"^Stack: only layers may .*pass one list, as"),
    (lambda: jrnn.transforms.dropout(jrnn.GRU(4), rate=0.1), "^Dropout: rate .*; the arguments ar"),
    (lambda: jrnn.Scan(unrol=2), "^Scan: unrol is not an argument; did you mean 'unroll'"),
    (lambda: jrnn.train.Experiment(step=40), "^Experiment: step .*; did you mean 'steps'\\?$"),
    (lambda: jrnn.train.Optimizer(lr=0.1), "^Optimizer: lr .*; use learning_rate$"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), INVALID, ids=[message for _, message in INVALID])
def test_invalid_argument_raises_a_type_error(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message) as error:
        call()
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU])
def test_unknown_engine_raises_with_the_name_of_the_module(module: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^{module.__name__}: engine must be one of auto, .*got 7"
    ):
        module(3, 4, rngs=RNGS, engine=7)
    with pytest.raises(ValueError, match="^RNN: engine must be one of auto, .*got 7"):
        nn.RNN(jrnn.GRU(4), 3, rngs=RNGS, engine=7)  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("StackedRNN", lambda rngs: nn.StackedRNN(jrnn.GRU(4), 3, 2, dropout=0.5, rngs=rngs)),
        ("Classifier", lambda rngs: nn.Classifier(LAYER, 2, dropout=0.5, rngs=rngs)),
        (
            "SequenceToSequence",
            lambda rngs: nn.SequenceToSequence(LAYER, 2, dropout=0.5, rngs=rngs),
        ),
    ],
)
def test_dropout_without_a_random_stream_raises(name: str, make: Any) -> None:
    with pytest.raises(
        ValueError, match=f"^{name}: rngs must have the stream 'dropout' for dropout"
    ):
        make(nnx.Rngs(params=0))
    make(nnx.Rngs(params=0, dropout=1))


def test_message_for_lists_of_unequal_lengths_names_the_argument() -> None:
    ragged: Any = [[True], [True, False, True]]
    unroll = lambda xs, **masks: jrnn.unroll(jrnn.GRU(4), {}, xs, **masks)
    for call in (LAYER, unroll):
        for name in ("mask", "resets"):
            with pytest.raises(ValueError, match=f"{name} must be one array, got nested lists"):
                call(jnp.ones((2, 3, 3)), **{name: ragged})


@pytest.mark.parametrize("token", [6, 100, -1])
def test_generate_refuses_tokens_outside_of_the_vocabulary(token: int) -> None:
    with pytest.raises(ValueError, match=f"prompt must have tokens from 0 to 5, .*, got {token}$"):
        nn.generate(LM, jnp.array([[0, token, 1]]), 3, key=KEY)


def test_generate_refuses_an_embedding_without_all_tokens() -> None:
    embedding = nnx.Embed(5, 3, rngs=RNGS)
    model = nn.SequenceToSequence(LAYER, 6, rngs=RNGS, embedding=embedding)
    with pytest.raises(ValueError, match="must have a row for each of the 6 tokens .*got 5 rows"):
        nn.generate(model, jnp.array([[1]]), 3, key=KEY)


def test_constructors_of_cells_can_be_inspected_copied_and_pickled() -> None:
    """Their arguments are validated in `__new__`, which `copy` and `pickle` call without any."""
    cell = jrnn.stack([jrnn.LSTM(3, bias=False), jrnn.transforms.zoneout(jrnn.GRU(4), h=0.1)])
    assert copy.deepcopy(cell) == pickle.loads(pickle.dumps(cell)) == cell
    assert list(inspect.signature(jrnn.GRU).parameters)[:2] == ["hidden_size", "reset_after"]


def test_signatures_list_all_options_by_name() -> None:
    for module in (nn.LSTM, nn.GRU, nn.StackedRNN):
        parameters = inspect.signature(module.__init__).parameters
        assert {"bidirectional", "dropout", "time_major", "engine", "dtype"} <= set(parameters)
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_errors_of_invalid_inputs_use_batch_major_axes() -> None:
    with pytest.raises(ValueError, match=r"GRU: xs must .*\(batch, time, input\), .* xs\[None\]"):
        LAYER(jnp.ones((5, 3)))
    message = r"GRU: xs must have a last axis of 3 \(input_size\), got shape \(2, 5, 4\); or create"
    for module in (LAYER, CLASSIFIER, nn.GRU(3, 4, rngs=RNGS, time_major=True)):
        with pytest.raises(ValueError, match=f"{message} the module with input_size=4$"):
            module(jnp.ones((2, 5, 4)))
    with pytest.raises(ValueError, match=message.replace("GRU", "RNN")):
        nn.RNN(jrnn.GRU(4), 3, rngs=RNGS)(jnp.ones((2, 5, 4)))
    cell = nn.FlaxCell(jrnn.GRU(4), 3, rngs=RNGS)
    with pytest.raises(
        ValueError, match="^FlaxCell: inputs must have a last axis of 3 .input_size"
    ):
        nnx.RNN(cell)(jnp.ones((2, 5, 4)))
    for module in (LAYER, CLASSIFIER):
        with pytest.raises(
            ValueError, match="^GRU: lengths must be from 0 to T = 10, got 12 at in"
        ):
            module(XS, lengths=np.array([10, 12, 3, 11]))
    with pytest.raises(TypeError, match="GRU: lengths must be ints"):
        LAYER(jnp.ones((2, 5, 3)), lengths=[1.0, 2.0])


def test_options_may_be_numpy_scalars() -> None:
    layer = nn.LSTM(
        np.int64(3),
        np.int32(8),
        np.int64(2),
        rngs=RNGS,
        dropout=np.float32(0.25),
        bidirectional=np.bool_(True),
        forget_bias=np.float32(2),
    )
    assert layer.rnns[0].cell == jrnn.LSTM(8, forget_bias=2.0)
    assert [type(value) for value in (layer.num_layers, layer.input_size)] == [int, int]
    assert repr(layer.rnns[3].cell) == repr(jrnn.LSTM(8, forget_bias=2.0))


def test_cells_without_biases_have_only_matrices() -> None:
    for layer in (nn.LSTM(3, 4, rngs=RNGS, bias=False), nn.GRU(3, 4, rngs=RNGS, bias=False)):
        assert {a.ndim for a in jax.tree.leaves(layer.rnns[0].params)} == {2}
