"""Recurrent cells, one module for each cell or family of similar cells."""

from jrnn.cell import Cell
from jrnn.cells.antisymmetric import AntisymmetricGates as AntisymmetricGates
from jrnn.cells.antisymmetric import AntisymmetricParams as AntisymmetricParams
from jrnn.cells.antisymmetric import AntisymmetricRNN as AntisymmetricRNN
from jrnn.cells.cfc import CfC as CfC
from jrnn.cells.cfc import CfCGates as CfCGates
from jrnn.cells.cfc import CfCInputs as CfCInputs
from jrnn.cells.cfc import CfCParams as CfCParams
from jrnn.cells.clockwork import Clockwork as Clockwork
from jrnn.cells.clockwork import ClockworkCarry as ClockworkCarry
from jrnn.cells.clockwork import ClockworkParams as ClockworkParams
from jrnn.cells.conv import ConvLSTM as ConvLSTM
from jrnn.cells.conv import ConvLSTMParams as ConvLSTMParams
from jrnn.cells.cornn import CoRNN as CoRNN
from jrnn.cells.cornn import CoRNNCarry as CoRNNCarry
from jrnn.cells.cornn import CoRNNParams as CoRNNParams
from jrnn.cells.ctrnn import CTRNN as CTRNN
from jrnn.cells.ctrnn import CTRNNCarry as CTRNNCarry
from jrnn.cells.ctrnn import CTRNNParams as CTRNNParams
from jrnn.cells.depth_gated import DepthGatedLSTM as DepthGatedLSTM
from jrnn.cells.depth_gated import DepthGatedLSTMGates as DepthGatedLSTMGates
from jrnn.cells.depth_gated import DepthGatedLSTMParams as DepthGatedLSTMParams
from jrnn.cells.depth_gated import WithCellState as WithCellState
from jrnn.cells.elman import Elman as Elman
from jrnn.cells.elman import ElmanParams as ElmanParams
from jrnn.cells.fastgrnn import FastGRNN as FastGRNN
from jrnn.cells.fastgrnn import FastGRNNGates as FastGRNNGates
from jrnn.cells.fastgrnn import FastGRNNParams as FastGRNNParams
from jrnn.cells.gru import GRU as GRU
from jrnn.cells.gru import GRUGates as GRUGates
from jrnn.cells.gru import GRUParams as GRUParams
from jrnn.cells.grud import GRUD as GRUD
from jrnn.cells.grud import GRUDCarry as GRUDCarry
from jrnn.cells.grud import GRUDGates as GRUDGates
from jrnn.cells.grud import GRUDParams as GRUDParams
from jrnn.cells.grud import Observed as Observed
from jrnn.cells.indrnn import IndRNN as IndRNN
from jrnn.cells.indrnn import IndRNNParams as IndRNNParams
from jrnn.cells.janet import JANET as JANET
from jrnn.cells.janet import JANETGates as JANETGates
from jrnn.cells.janet import JANETParams as JANETParams
from jrnn.cells.lem import LEM as LEM
from jrnn.cells.lem import LEMCarry as LEMCarry
from jrnn.cells.lem import LEMGates as LEMGates
from jrnn.cells.lem import LEMParams as LEMParams
from jrnn.cells.linear import LRU as LRU
from jrnn.cells.linear import LRUGates as LRUGates
from jrnn.cells.linear import LRUParams as LRUParams
from jrnn.cells.lstm import LSTM as LSTM
from jrnn.cells.lstm import LSTMCarry as LSTMCarry
from jrnn.cells.lstm import LSTMGateCarry as LSTMGateCarry
from jrnn.cells.lstm import LSTMGates as LSTMGates
from jrnn.cells.lstm import LSTMParams as LSTMParams
from jrnn.cells.lstm_variants import lstm_variant as lstm_variant
from jrnn.cells.minimal import MinGRU as MinGRU
from jrnn.cells.minimal import MinGRUGates as MinGRUGates
from jrnn.cells.minimal import MinLSTM as MinLSTM
from jrnn.cells.minimal import MinLSTMGates as MinLSTMGates
from jrnn.cells.minimal import MinParams as MinParams
from jrnn.cells.mogrifier import MogrifierLSTM as MogrifierLSTM
from jrnn.cells.mogrifier import MogrifierLSTMParams as MogrifierLSTMParams
from jrnn.cells.multiplicative import MultiplicativeLSTM as MultiplicativeLSTM
from jrnn.cells.multiplicative import MultiplicativeLSTMGates as MultiplicativeLSTMGates
from jrnn.cells.multiplicative import MultiplicativeLSTMParams as MultiplicativeLSTMParams
from jrnn.cells.mut import MUT1 as MUT1
from jrnn.cells.mut import MUT2 as MUT2
from jrnn.cells.mut import MUT3 as MUT3
from jrnn.cells.mut import MUTGates as MUTGates
from jrnn.cells.mut import MUTParams as MUTParams
from jrnn.cells.one_gate import MGU as MGU
from jrnn.cells.one_gate import UGRNN as UGRNN
from jrnn.cells.one_gate import MGUGates as MGUGates
from jrnn.cells.one_gate import MGUParams as MGUParams
from jrnn.cells.one_gate import MinimalRNN as MinimalRNN
from jrnn.cells.one_gate import MinimalRNNGates as MinimalRNNGates
from jrnn.cells.one_gate import MinimalRNNParams as MinimalRNNParams
from jrnn.cells.one_gate import UGRNNGates as UGRNNGates
from jrnn.cells.one_gate import UGRNNParams as UGRNNParams
from jrnn.cells.para import ParaGRU as ParaGRU
from jrnn.cells.para import ParaGRUParams as ParaGRUParams
from jrnn.cells.para import ParaLSTM as ParaLSTM
from jrnn.cells.para import ParaLSTMParams as ParaLSTMParams
from jrnn.cells.rglru import RGLRU as RGLRU
from jrnn.cells.rglru import RGLRUGates as RGLRUGates
from jrnn.cells.rglru import RGLRUParams as RGLRUParams
from jrnn.cells.s5 import S5 as S5
from jrnn.cells.s5 import S5Params as S5Params
from jrnn.cells.xlstm import MLSTM as MLSTM
from jrnn.cells.xlstm import SLSTM as SLSTM
from jrnn.cells.xlstm import MLSTMCarry as MLSTMCarry
from jrnn.cells.xlstm import MLSTMGates as MLSTMGates
from jrnn.cells.xlstm import MLSTMParams as MLSTMParams
from jrnn.cells.xlstm import SLSTMCarry as SLSTMCarry
from jrnn.cells.xlstm import SLSTMParams as SLSTMParams

REGISTRY: dict[str, type[Cell]] = {
    "lstm": LSTM,
    "gru": GRU,
    "elman": Elman,
    "janet": JANET,
    "multiplicativelstm": MultiplicativeLSTM,
    "mogrifierlstm": MogrifierLSTM,
    "depthgatedlstm": DepthGatedLSTM,
    "slstm": SLSTM,
    "convlstm": ConvLSTM,
    "paralstm": ParaLSTM,
    "mgu": MGU,
    "ugrnn": UGRNN,
    "mut1": MUT1,
    "mut2": MUT2,
    "mut3": MUT3,
    "minimalrnn": MinimalRNN,
    "grud": GRUD,
    "paragru": ParaGRU,
    "fastgrnn": FastGRNN,
    "indrnn": IndRNN,
    "antisymmetricrnn": AntisymmetricRNN,
    "clockwork": Clockwork,
    "cornn": CoRNN,
    "lem": LEM,
    "ctrnn": CTRNN,
    "cfc": CfC,
    "mingru": MinGRU,
    "minlstm": MinLSTM,
    "lru": LRU,
    "rglru": RGLRU,
    "s5": S5,
    "mlstm": MLSTM,
}
"""Maps the names that configs use to cell classes; all accept `cls(hidden_size=...)`."""
