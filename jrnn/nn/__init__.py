"""Flax modules: recurrent layers of any cell, models with an output layer, streaming, sampling."""

from jrnn.nn.flax_cell import FlaxCell as FlaxCell
from jrnn.nn.generate import generate as generate
from jrnn.nn.heads import Classifier as Classifier
from jrnn.nn.heads import SequenceToSequence as SequenceToSequence
from jrnn.nn.layers import GRU as GRU
from jrnn.nn.layers import LSTM as LSTM
from jrnn.nn.layers import StackedRNN as StackedRNN
from jrnn.nn.rnn import RNN as RNN
from jrnn.nn.scanned import ScannedRNN as ScannedRNN
from jrnn.nn.stream import Stream as Stream
from jrnn.nn.stream import stream as stream
