"""Invalid arguments of the modules of `jrnn.nn` raise errors that say what to pass instead."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn import nn

RNGS = nnx.Rngs(0)
LAYER = nn.GRU(3, 4, rngs=RNGS)
# A language model of six tokens.
LM = nn.SequenceToSequence(LAYER, 6, rngs=RNGS, embedding=nnx.Embed(6, 3, rngs=RNGS))
KEY = jax.random.key(0)

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
    (lambda: nn.GRU(3, 8, rngs=RNGS, size=1), r"^GRU.__init__\(\) got an unexpected keyword"),
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
    (lambda: jrnn.LSTM(3, 8), "takes 2 positional arguments but 3 were given"),
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


def test_signatures_list_all_options_by_name() -> None:
    for module in (nn.LSTM, nn.GRU, nn.StackedRNN):
        parameters = inspect.signature(module.__init__).parameters
        assert {"bidirectional", "dropout", "time_major", "engine", "dtype"} <= set(parameters)
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def test_errors_of_invalid_inputs_use_batch_major_axes() -> None:
    with pytest.raises(ValueError, match=r"GRU: xs must .*\(batch, time, input\), .* xs\[None\]"):
        LAYER(jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"GRU: xs must have a last axis of 3 .*got shape"):
        LAYER(jnp.ones((2, 5, 4)))
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
