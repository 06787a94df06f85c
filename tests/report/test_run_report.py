"""Reports of trained runs, compared with the predictions of the runs and with their data."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import jrnn
from jrnn.cli.main import main
from jrnn.report.evaluation import Evaluation, evaluate
from jrnn.report.examples import class_tables, value_scatter, worst_examples
from jrnn.report.gates import MAX_STEPS, capture_traces, gate_figures
from jrnn.report.page import Page, grid
from jrnn.report.run_page import make_run_report
from jrnn.tasks.conversion import decode_outputs
from jrnn.tasks.task import DataSpec, Split
from jrnn.train import Network
from jrnn.train.scores import losses_and_metrics, score, scored_targets
from jrnn.train.step.evaluate import make_evaluate
from jrnn.train.step.loss import Objective
from jrnn.train.step.state import Weights
from tests.cli.test_hostile_runs import run_and_fail
from tests.report.conftest import FOLDER, SCRIPT
from tests.report.helpers import assert_self_contained
from tests.report.test_page import decode_levels


def read_report(folder):
    return assert_self_contained((Path(folder) / "report.html").read_text("utf-8"))


def test_report_of_a_forecast_has_all_sections_and_shows_names_as_text(in_folder, capsys):
    main(["report", FOLDER])
    assert "report.html" in capsys.readouterr().out
    page = read_report(FOLDER)
    titles = [text for path, text in page.texts if path[-1:] == ("h2",)]
    assert titles == [
        "Result",
        "Learning curves",
        "Errors on the test split",
        "Forecasts of the test split",
        "Gates and carries over time",
        "Settings",
    ]
    assert f"Run {FOLDER}" in page.text() and SCRIPT in page.text()
    metrics = jrnn.load(FOLDER).metrics
    charts = page.charts()
    for title, name in (
        ("Gradient norm, before clipping", "grad_norm"),
        ("Update norm", "update_norm"),
    ):
        (series,) = charts[title]["series"]
        lines = [line for line in metrics if line["split"] == "train"]
        assert series["x"] == [line["step"] for line in lines] == [2, 4, 6]
        np.testing.assert_allclose(series["y"], [line[name] for line in lines], rtol=1e-5)
    validation = charts["Loss"]["series"][1]
    assert validation["name"] == "validation" and charts["Loss"]["y"]["log"] is True
    best = min((m for m in metrics if m["split"] == "validation"), key=lambda m: m["metric"])
    assert charts["Loss"]["marks"] == [
        {"axis": "x", "value": best["step"], "name": f"best step {best['step']}"}
    ]
    baseline = charts["MSE (normalized units)"]["marks"][-1]
    assert baseline["name"] == "baseline: persistence"
    assert baseline["value"] == pytest.approx(jrnn.load(FOLDER).data.spec.baseline[1], rel=1e-5)


def test_forecasts_are_those_of_the_run_in_original_units(in_folder):
    run = jrnn.load(FOLDER)
    data = run.load_data()
    page = Page("title")
    evaluation = evaluate(run.model, data, "test")
    page.add_section("Forecasts", *worst_examples(page, evaluation, 1))
    charts = assert_self_contained(page.render()).chart_list()
    series = np.genfromtxt("table.csv", delimiter=",", skip_header=1)[:, 0]
    steps, targets = data.forecast.steps, len(data.forecast.targets)
    inputs = data.input_scaler.invert(data.test.xs)
    predictions = run.predict(inputs).values
    worst = evaluation.rank(1)[0]
    length = inputs.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(series, length)
    start = int(np.abs(windows - inputs[worst, :, 0]).max(axis=1).argmin())
    truth, predicted = (np.array(s["y"], float) for s in charts[0]["series"])
    np.testing.assert_allclose(truth, series[start : start + length + steps], rtol=1e-5)
    assert np.isnan(predicted[:length]).all()
    np.testing.assert_allclose(predicted[length:], predictions[worst, -1, ::targets], rtol=1e-4)
    assert charts[0]["label"] == SCRIPT and charts[1]["label"] == "day"


def test_report_of_a_text_needs_no_data(in_folder, tmp_path, capsys):
    main(["report", "text"])
    page = read_report("text")
    assert "Sampled text" in page.text() and "Worst examples of the test split" in page.text()
    vocabulary = jrnn.load("text").data.spec.vocabulary or ()
    samples = [t for path, t in page.texts if path[-1:] == ("pre",)][-4:]
    assert {*"".join(samples)} <= {*vocabulary} and "<" in vocabulary
    shutil.copytree("text", tmp_path / "text", ignore=shutil.ignore_patterns("report.html"))
    saved = tmp_path / "text/data.json"
    saved.write_text(saved.read_text().replace(str(in_folder), "/nowhere"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(["report", "text", "--out", "page.html"])
        page = assert_self_contained(Path("page.html").read_text("utf-8"))
    text = page.text()
    assert "are left out, since they need the data of the run: their file is not on this" in text
    assert "Sampled text" in text and "Gates for sampled text" in text and "gate f" in text
    assert "Worst examples" not in text and not (tmp_path / "text/report.html").exists()


def test_confusion_matrix_and_worst_images_are_those_of_the_run(in_folder):
    main(["report", "sweep/best", "--split", "validation", "--examples", "3"])
    page = read_report("sweep/best")
    run = jrnn.load("sweep/best")
    data = run.load_data()
    scaler = data.input_scaler
    predictions = run.predict(scaler.invert(data.validation.xs))
    ys, probabilities = data.validation.ys, predictions.probabilities
    losses = -np.log(probabilities[np.arange(len(ys)), ys])
    titles = [a["title"] for tag, a in page.elements if tag == "td" and "title" in a]
    expected = [
        f"true {t}, predicted {p}: {np.sum((ys == t) & (predictions.classes == p))}"
        for t in range(10)
        for p in range(10)
    ]
    assert titles == expected
    charts = page.charts()
    worst = np.argsort(-losses)[:3]
    for k in worst.tolist():
        picture = charts[f"example {k}"]
        np.testing.assert_allclose(
            decode_levels(picture), data.image(data.validation.xs[k]), atol=16 / 255
        )
    shown = page.text().replace("\n", " ")
    assert f"loss {losses[worst[0]]:.3g}" in shown
    assert sum(title.startswith("example ") for title in charts) == 3


def make_evaluation(spec, ys, outputs):
    xs = np.zeros((len(ys), 4, spec.input_size), np.float32)
    examples = Split(xs, np.asarray(ys))
    lengths = np.full(len(ys), 4)
    predictions = decode_outputs(spec, outputs, lengths, xs)
    losses, _ = losses_and_metrics(spec, examples.ys, outputs)
    mask = scored_targets(spec, examples)
    return Evaluation(
        spec, "test", examples, predictions, losses, mask, score(spec, examples, outputs)
    )


def test_ignored_labels_are_not_among_the_worst_examples():
    spec = DataSpec(
        target="class",
        metric="accuracy",
        input_size=1,
        output_size=2,
        baseline=("most frequent class", 0.5),
        class_names=("cat", "dog"),
    )
    ys = np.array([0, -100, 1, 1, -100], np.int32)
    outputs = np.array([[0, 2], [9, 0], [0, 3], [1, 0], [0, 9]], np.float32)
    evaluation = make_evaluation(spec, ys, outputs)
    assert evaluation.rank(5) == [0, 3, 2]
    assert evaluation.choose() == {"highest loss": 0, "median loss": 3, "lowest loss": 2}
    page = Page("title")
    page.add_section("Worst", *class_tables(evaluation), *worst_examples(page, evaluation, 5))
    assert assert_self_contained(page.render()).text().count("loss ") == 3


def test_missing_values_are_not_drawn():
    spec = DataSpec(
        target="value",
        metric="mse",
        input_size=1,
        output_size=2,
        baseline=("constant prediction", 1.0),
    )
    ys = np.array([[1, np.nan], [2, 4], [np.nan, np.nan]], np.float32)
    evaluation = make_evaluation(spec, ys, np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(evaluation.example_losses, [1, 10, 0])
    assert evaluation.rank(3) == [1, 0]
    page = Page("title")
    page.add_section("Scatter", value_scatter(page, evaluation))
    page.add_section("Worst", *worst_examples(page, evaluation, 3))
    charts = assert_self_contained(page.render()).charts()
    assert [charts[f"target {k}"]["series"][1]["x"] for k in range(2)] == [[1, 2], [4]]


@pytest.mark.parametrize("distribution", ["gaussian", "quantiles"])
def test_losses_of_forecasts_are_those_of_the_scores(distribution, in_folder):
    task = jrnn.tasks.Table("table.csv", window=16, horizon=3, distribution=distribution)
    data = jrnn.tasks.load(task)
    model = Network(jrnn.GRU(2)).build(data, 0)
    model.eval()
    evaluation = evaluate(model, data, "test")
    assert evaluation.losses.shape == evaluation.mask.shape == data.test.ys.shape
    loss = evaluation.losses[evaluation.mask].mean()
    assert loss == pytest.approx(evaluation.scores["loss"])
    page = Page("title")
    page.add_section("Forecasts", *worst_examples(page, evaluation, 2))
    assert len(assert_self_contained(page.render()).chart_list()) >= 4


def test_names_of_classes_are_text_and_many_classes_give_a_table_of_errors():
    names = tuple(f"{SCRIPT}{k}" for k in range(40))
    spec = DataSpec(
        target="class",
        metric="accuracy",
        input_size=1,
        output_size=40,
        baseline=("most frequent class", 0.1),
        class_names=names,
    )
    ys = np.array([3] * 5 + [4] * 2 + [5])
    predicted = np.array([7] * 4 + [3] + [4, 8] + [5])
    outputs = np.eye(40, dtype=np.float32)[predicted]
    page = Page("title")
    page.add_section("Errors", *class_tables(make_evaluation(spec, ys, outputs)))
    parsed = assert_self_contained(page.render())
    cells = [t for path, t in parsed.texts if path[-1:] == ("td",)]
    # After the rows of the classes, there is one row for each kind of error.
    assert cells[40 * 5 :] == [names[3], names[7], "4", names[4], names[8], "1"]
    assert "Confusion matrix" not in parsed.text()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_captured_carries_explain_the_outputs(bidirectional):
    """The outputs of a network are those of its head on the captured carries of the last layer."""
    spec = jrnn.tasks.Digits(order="row").load().spec
    network = Network(jrnn.GRU(3), num_layers=2, bidirectional=bidirectional)
    model = network.build(spec, 0)
    model.eval()
    rng = np.random.default_rng(0)
    xs, lengths = rng.normal(size=(2, 5, 8)).astype(np.float32), np.array([5, 3], np.int32)
    traces = capture_traces(model, Split(xs, np.zeros(2), lengths))
    names = [trace.name for trace in traces]
    directions = (", forward", ", reverse") if bidirectional else ("",)
    assert names == [
        f"layer {layer}{direction}: {part}"
        for layer in (1, 2)
        for direction in directions
        for part in ("gate r", "gate z", "gate n", "carry h")
    ]
    last = [trace.values for trace in traces if trace.name.startswith("layer 2")][3::4]
    pooled = [last[0][lengths - 1, np.arange(2)], *(values[0] for values in last[1:])]
    head = model.head
    outputs = np.concatenate(pooled, -1) @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
    with jax.default_matmul_precision("float32"):
        np.testing.assert_allclose(outputs, model(xs, lengths=lengths), rtol=1e-4, atol=1e-6)


def test_gates_of_long_sequences_are_cut_and_the_page_says_so():
    traces = capture_long_traces()
    page = Page("title")
    figures, note = gate_figures(page, traces, 0, 400)
    page.add_section("Gates", figures, note)
    parsed = assert_self_contained(page.render())
    assert f"Left out: steps after the first {MAX_STEPS} of 400." in parsed.text()
    chart = parsed.charts()["gate z"]
    assert chart["shape"] == [2, MAX_STEPS] and (chart["low"], chart["high"]) == (0, 1)
    expected = np.array([trace.values for trace in traces if trace.name == "gate z"])[0, :256, 0].T
    np.testing.assert_allclose(decode_levels(chart), expected, atol=1 / 255)


def capture_long_traces():
    spec = jrnn.tasks.Digits(order="row").load().spec
    model = Network(jrnn.GRU(2)).build(spec, 0)
    model.eval()
    xs = np.random.default_rng(0).normal(size=(1, 400, 8)).astype(np.float32)
    return capture_traces(model, Split(xs, np.zeros(1)))


def test_unfinished_run_has_a_report(in_folder, tmp_path):
    target = tmp_path / "run"
    shutil.copytree(FOLDER, target)
    (target / "result.json").unlink()
    (target / "metrics.jsonl").unlink()
    shutil.rmtree(target / "checkpoints")
    html = make_run_report(jrnn.load(target))
    text = assert_self_contained(html).text()
    assert "not finished" in text and "has no evaluated network yet" in text
    assert "Learning curves" not in text and "Settings" in text


def test_invalid_arguments_of_report_are_refused(in_folder, capsys):
    cases = {
        "suffix .html": ["--out", "page.txt"],
        "in an existing folder": ["--out", "none/page.html"],
        "examples must be": ["--examples", "-1"],
        "suffix of --figure must be one of": ["--figure", "x.gif"],
        "must be a file in an existing": ["--figure", "none/x.pdf"],
    }
    for message, flags in cases.items():
        assert message in run_and_fail(["report", "text", *flags], capsys)
    assert "--figure must be omitted" in run_and_fail(
        ["report", "sweep", "--figure", "x.pdf"], capsys
    )
    assert "a folder of runs, such as" in run_and_fail(["report", str(in_folder)], capsys)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", b'{"step": 1, "split": "train"}\n'),
        ("metrics.jsonl", b'{"step": 1, "split": "train", "loss": [], "metric": 1}\n'),
        ("result.json", b"[1]"),
        ("data.json", b"{}"),
    ],
)
def test_invalid_files_of_a_run_are_refused(name, content, in_folder, tmp_path, capsys):
    shutil.copytree("text", tmp_path / "text")
    (tmp_path / "text" / name).write_bytes(content)
    (tmp_path / "text/report.html").unlink(missing_ok=True)
    assert name in run_and_fail(["report", str(tmp_path / "text")], capsys)
    assert not (tmp_path / "text/report.html").exists()


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png"])
def test_figure_for_a_paper_has_a_title_and_units(suffix, in_folder, tmp_path):
    path = tmp_path / f"figure{suffix}"
    main(["report", FOLDER, "--figure", str(path), "--out", str(tmp_path / "page.html")])
    content = path.read_bytes()
    assert content.startswith({".pdf": b"%PDF", ".svg": b"<?xml", ".png": b"\x89PNG"}[suffix])
    if suffix == ".svg":
        # Texts are paths, and matplotlib writes each text as a comment.
        text = content.decode()
        for expected in ("Table: LSTM(hidden_size=3)", "(normalized units)", "(original units)"):
            assert expected in text
        assert 'width="252' in text  # 3.5 inches


def test_grid_is_left_out_without_content():
    assert grid(None, None) is None


@pytest.mark.parametrize(
    ("options", "cell"),
    [
        ({"distribution": "gaussian"}, jrnn.GRU(3)),
        ({"distribution": "quantiles"}, jrnn.GRU(3)),
        ({"missing": "mask"}, jrnn.GRUD(3)),
        ({"missing": "mask"}, jrnn.CfC(3)),
    ],
)
def test_every_kind_of_forecast_has_errors_figures_and_gates(options, cell, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("load\n" + "".join(f"{k % 9}\n" if k % 40 else "\n" for k in range(1, 261)))
    missing = {"missing": "fill"} | options
    data = jrnn.tasks.Table(str(path), window=8, horizon=2, **missing).load()
    model = Network(cell, num_layers=1).build(data, 0)
    model.eval()
    evaluation = evaluate(model, data, "test")
    assert evaluation.losses.shape == evaluation.mask.shape
    assert evaluation.scores["metric"] == pytest.approx(measure(model, data), rel=1e-5)
    assert evaluation.scores["baselines"] and np.isfinite(evaluation.losses[evaluation.mask]).all()
    assert np.isfinite(evaluation.example_losses).all()
    page = Page("title")
    page.add_section("Forecasts", *worst_examples(page, evaluation, 1))
    traces = capture_traces(model, data.test)
    assert len(traces) > 1 and assert_self_contained(page.render()).chart_list()


def measure(model, data):
    """Returns the metric on the test split, as the training loop computes it."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    evaluate_split = make_evaluate(graphdef, Objective.from_data(data), 16)
    return evaluate_split(Weights(params, rest), data.test)["metric"]
