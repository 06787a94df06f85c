"""Config files: all configs of jrnn load, and errors name the invalid value."""

import dataclasses
import json
from pathlib import Path

import pytest

import jrnn
from jrnn import config
from jrnn.cells import REGISTRY as CELLS
from jrnn.engines import REGISTRY as ENGINES
from jrnn.layers import REGISTRY as LAYERS
from jrnn.serialize import classes
from jrnn.tasks import REGISTRY as TASKS
from jrnn.train import TBPTT, Experiment, Network, Optimizer
from jrnn.transforms import REGISTRY as TRANSFORMS
from jrnn.transforms import layer_norm, zoneout

USER_CONFIG = """
from dataclasses import dataclass
import jax.numpy as jnp
import jrnn
from jrnn.tasks import Adding
from jrnn.train import Experiment, Network

@dataclass(frozen=True)
class UserCell(jrnn.Cell):
    hidden_size: int
    rate: float = 0.5

    def init(self, key, input_size, dtype=jnp.float32):
        return {"w": jnp.ones((input_size, self.hidden_size), dtype)}

    def init_carry(self, params, batch_shape):
        return jnp.zeros((*batch_shape, self.hidden_size), params["w"].dtype)

    def project(self, params, x):
        return x @ params["w"]

    def recur(self, params, carry):
        return ()

    def update(self, params, carry, z, u):
        return self.rate * carry + z

def get_config(hidden: int = 3, names: str = "a", flag: bool = False) -> Experiment:
    run_dir = f"{names}, {flag}"
    return Experiment(Adding(4, 20, 10), Network(UserCell(hidden)), steps=2, run_dir=run_dir)
"""


@pytest.fixture
def user_config(tmp_path):
    path = tmp_path / "user.py"
    path.write_text(USER_CONFIG)
    return path


def test_config_of_jrnn_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("digits.py") == config.load("configs/digits.py")


def test_every_task_has_a_config():
    configs = config.list_configs()
    assert len(configs) == len(TASKS) + 1  # adding.py and long_sequences.py have the same task
    tasks = {type(config.load(str(path)).task) for path in configs}
    assert tasks == set(TASKS.values())


@pytest.mark.parametrize("path", config.list_configs(), ids=lambda path: path.name)
@pytest.mark.parametrize("cell", CELLS)
def test_every_config_builds_with_every_cell(path, cell):
    experiment = config.load(f"{path}:cell={cell},hidden=7,runlocal=true")
    assert type(experiment.network.cell) is CELLS[cell]
    assert getattr(experiment.network.cell, "hidden_size") == 7  # noqa: B009
    assert experiment.steps <= 40
    assert config.load(str(path)).steps > 100


def test_cell_name_may_contain_transforms():
    flags = ["--network.cell.h", "0.1", "--network.cell.cell.cell.t-max", "9"]
    experiment = config.load("configs/digits.py:cell=zoneout+layer_norm+gru,hidden=5", flags)
    expected = zoneout(layer_norm(jrnn.GRU(5, t_max=9)), h=0.1)
    assert experiment.network.cell == expected
    assert config.decode(config.encode(experiment)) == experiment


@pytest.mark.parametrize(
    "name, message",
    [
        ("zoneuot+gru", "transform must be one of layer_norm, .*did you mean 'zoneout'"),
        ("stack+gru", "transform must be one of .*, got 'stack'"),
        ("clip+gru", "transform must be one of .*, got 'clip'"),
        ("zoneout+", "cell must be one of lstm, .*, got ''"),
        ("gru+lstm", "transform must be one of .*, got 'gru'"),
    ],
)
def test_unknown_transform_raises(name, message):
    with pytest.raises(ValueError, match=message):
        config.make_cell(name, 4)


def test_flags_override_single_fields():
    flags = ["--optimizer.learning-rate", "1e-4", "--network.cell.forget-bias", "2", "--steps", "9"]
    experiment = config.load("configs/digits.py", flags)
    default = config.load("configs/digits.py")
    assert experiment == dataclasses.replace(
        default,
        steps=9,
        optimizer=dataclasses.replace(default.optimizer, learning_rate=1e-4),
        network=dataclasses.replace(
            default.network, cell=dataclasses.replace(default.network.cell, forget_bias=2.0)
        ),
    )


def test_arguments_after_the_colon_are_typed(user_config):
    experiment = config.load(f"{user_config}:hidden=5,flag=true,names=true")
    assert getattr(experiment.network.cell, "hidden_size") == 5  # noqa: B009
    assert experiment.run_dir == "true, True"
    assert config.load(f"{user_config}:names=-x=y").run_dir == "-x=y, False"


@pytest.mark.parametrize(
    ("arguments", "flags", "words"),
    [
        ("cel=gru", [], ["'cel'", "did you mean 'cell'?"]),
        ("hidden=many", [], ["hidden must be an int", "many"]),
        ("", ["--optimizer.learning-rat", "1"], ["did you mean", "--optimizer.learning-rate"]),
        ("cell=gru", ["--network.cell.forget-bias", "1"], ["--network.cell.forget-bias"]),
    ],
)
def test_error_names_the_invalid_argument_or_flag(arguments, flags, words, capsys):
    with pytest.raises(config.ConfigError) as error:
        config.load(f"configs/digits.py:{arguments}", flags)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value) and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("configs/digit.py", "did you mean 'configs/digits.py'"),
        ("configs/digits.py:cell", "must have the form name=value"),
        ("configs/digits.py:cell=gro", "did you mean 'gru'"),
        ("nowhere/at/all.toml", "the configs of jrnn are configs/adding.py"),
        ("nowhere/digits.py", "no such config file"),
    ],
)
def test_invalid_specs_raise(spec, message):
    with pytest.raises(ValueError, match=message):
        config.load(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define a function get_config"),
        ("def get_config(): return 3", "must return a jrnn.train.Experiment, got 3"),
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(): return {}['key']", "invalid.py, line 1: get_config: KeyError: 'key'"),
        ("x = 3\n\ny = z", "invalid.py, line 3: NameError: name 'z' is not defined"),
        ("def get_config():\n    return x", "invalid.py, line 2: get_config: NameError: name 'x'"),
        (
            "from jrnn.train import Experiment\ndef get_config():\n    return Experiment(step=4)",
            r"invalid.py, line 3: Experiment: step is not an argument; did you mean 'steps'\?$",
        ),
        (
            "import jrnn\ndef make(n):\n    return jrnn.GRU(n)\ndef get_config():\n    make(-1)",
            "invalid.py, line 3: GRU: hidden_size must be a positive int, got -1",
        ),
    ],
)
def test_invalid_config_files_raise(tmp_path, text, message):
    path = tmp_path / "invalid.py"
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=message):
        config.load(str(path))


def test_spec_may_be_a_path_and_must_be_a_text():
    assert config.load(Path("configs/digits.py")) == config.load("configs/digits.py")
    with pytest.raises(TypeError, match="^config: spec must be a path, got 3; such as configs/"):
        config.load(3)


def test_json_round_trip_preserves_every_field(tmp_path):
    for path in config.list_configs():
        experiment = config.load(str(path))
        config.save(experiment, str(path), tmp_path / "config.json")
        assert config.read(tmp_path / "config.json") == experiment


def test_json_round_trip_preserves_tuples_and_none(tmp_path):
    task = TASKS["table"]("data.csv", columns=("a", "b"), targets=("b",))
    experiment = Experiment(task, Network(jrnn.LSTM(3, t_max=8)), Optimizer(clip_norm=None))
    assert config.decode(json.loads(json.dumps(config.encode(experiment)))) == experiment


def test_every_class_that_an_experiment_may_contain_is_decoded():
    """`classes` lists those of all registries, and fields may have layers within layers."""
    names = classes()
    for registry in (CELLS, TRANSFORMS, ENGINES, LAYERS, TASKS):
        assert {f"{cls.__module__}:{cls.__qualname__}" for cls in registry.values()} <= {*names}
    assert {Experiment, Network, Optimizer, TBPTT} <= {*names.values()}
    assert all(name.startswith("jrnn.") for name in names)
    stacked = jrnn.stack([jrnn.bidirectional(jrnn.LSTM(3)), zoneout(jrnn.GRU(6))])
    experiment = Experiment(TASKS["digits"](), Network(stacked), tbptt=TBPTT(2, 4))
    assert config.decode(json.loads(json.dumps(config.encode(experiment)))) == experiment


def test_saved_config_with_user_cell_does_not_need_its_file(user_config, tmp_path):
    experiment = config.load(str(user_config))
    config.save(experiment, str(user_config), tmp_path / "config.json")
    user_config.unlink()
    with pytest.raises(config.ConfigError, match="needs the class jrnn_config:UserCell.*--trust"):
        config.read(tmp_path / "config.json")
    restored = config.read(tmp_path / "config.json", trust=True)
    assert repr(restored) == repr(experiment)
    assert getattr(restored.network.cell, "rate") == 0.5  # noqa: B009


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["experiment"].update(unknown=1), "another version"),
        (
            lambda saved: saved["experiment"]["task"].update(type="jrnn.tasks:Unknown"),
            "another version",
        ),
        (lambda saved: saved.pop("experiment"), "another version"),
        (lambda saved: saved["experiment"].update(steps=-1), "steps must be a positive int"),
    ],
)
def test_json_of_another_version_or_with_an_invalid_value_raises(tmp_path, change, message):
    path = tmp_path / "config.json"
    config.save(config.load("configs/digits.py"), "configs/digits.py", path)
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=message):
        config.read(path)


@pytest.mark.parametrize("name", ["config", "sweep"])
def test_message_names_the_copy_of_the_config_file(tmp_path, name):
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({"type": "jrnn_config:UserCell"}))
    with pytest.raises(config.ConfigError, match=f"pass --trust to execute its {name}.py, which"):
        config.read_saved(path, config.decode)


def test_truncated_json_raises(tmp_path):
    (tmp_path / "config.json").write_text('{"experiment": ')
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.read(tmp_path / "config.json")


def test_what_a_config_prints_on_standard_error_is_shown(tmp_path, capsys):
    path = tmp_path / "warns.py"
    path.write_text(
        "import sys\nimport jrnn\nfrom jrnn.tasks import Adding\n"
        "from jrnn.train import Experiment, Network\n\n"
        "def get_config() -> Experiment:\n"
        "    print('careful', file=sys.stderr)\n"
        "    return Experiment(Adding(), Network(jrnn.GRU(4)))\n"
    )
    config.load(str(path))
    assert capsys.readouterr().err == "careful\n"
    path.write_text(path.read_text().replace("jrnn.GRU(4)", "jrnn.GRU(0)"))
    with pytest.raises(ValueError, match="hidden_size must be a positive int"):
        config.load(str(path))
    assert capsys.readouterr().err == "careful\n"
