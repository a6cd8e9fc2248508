"""Graphs of the smoke runs: each stage has its own layers alone, quantised layers do, and the gate refuses what is damaged."""

from __future__ import annotations

import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp_model.bundle import BundleStore, Control
from offramp_model.costs import CostTable
from offramp_model.graphs import FOLDER, KINDS, WHOLE, graph_files
from offramp_model.routing import BankRule
from offramp_training import export
from offramp_training.assembly import load_whole
from offramp_training.config import JobConfig, JobError, load_config
from offramp_training.data import LabelledImages
from offramp_training.graphs.fidelity import Fidelity, compare
from offramp_training.policies import Frames
from offramp_training.run_directory import RunDirectory
from offramp_training.sections import ExportConfig
from offramp_training.steps import run_steps
from tests.conftest import HAS_NNCF

needs_nncf = pytest.mark.skipif(not HAS_NNCF, reason="openvino and nncf, of the extra `train`, are not installed")


@pytest.fixture
def smoke_copy(smoke_run: Path, tmp_path: Path) -> RunDirectory:
    """The smoke run before it was published."""
    shutil.copytree(smoke_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "publish")
    return RunDirectory(tmp_path / "run")


def job(run: RunDirectory, *overrides: str) -> JobConfig:
    return load_config("smoke", [f"publish.store={run.root.parent / 'store'}", *overrides])


def layers(path: Path, kind: str) -> list[ElementTree.Element]:
    return [layer for layer in ElementTree.parse(path).iterfind("./layers/layer") if layer.attrib["type"] == kind]


def whole_numbers(path: Path) -> int:
    """Constants in int8 of four dimensions: the weights of quantised convolutions, those of grouped ones have five."""
    about = [layer.find("data").attrib for layer in layers(path, "Const")]  # type: ignore[union-attr]
    return sum(each["element_type"] == "i8" and each["shape"].count(",") == 3 for each in about)


@needs_nncf
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_has_its_own_convolutions_and_no_others(smoke_run: Path, kind: str) -> None:
    folder = smoke_run / "export" / FOLDER / kind
    convolutions = [len(layers(folder / f"stage{exit}.xml", "Convolution")) for exit in (1, 2, 3, 4)]
    assert convolutions == [3, 3, 3, 3]  # a stem and a block of two; then blocks of two with a projection beside
    assert len(layers(folder / f"{WHOLE}.xml", "Convolution")) == sum(convolutions)


@needs_nncf
def test_int8_graphs_take_the_heads_from_the_bundle(forecast_run: Path) -> None:
    folder = forecast_run / "export" / FOLDER / "int8"
    for exit in (1, 2, 3):
        inputs = layers(folder / f"stage{exit}.xml", "Parameter")
        named = [layer.find("output/port").attrib["names"] for layer in inputs]  # type: ignore[union-attr]
        assert [name for name in named if name.startswith("heads.")] == [f"heads.{exit - 1}.0.weight"]


@needs_nncf
def test_everything_but_the_first_convolution_is_quantised(smoke_run: Path) -> None:
    folder = smoke_run / "export" / FOLDER / "int8"
    assert [whole_numbers(folder / f"stage{exit}.xml") for exit in (1, 2, 3, 4)] == [2, 3, 3, 3]


@needs_nncf
def test_the_bundle_tells_what_its_graphs_give(smoke_run: Path, smoke_store: Path) -> None:
    manifest = BundleStore(smoke_store).open("smoke", 1).manifest
    assert manifest.graphs is not None
    assert set(graph_files(4)) <= manifest.files.keys()
    result = RunDirectory(smoke_run).result("export")["graphs"]
    assert manifest.graphs.made_by == result["made_by"]
    card = (smoke_store / "smoke" / "1" / "README.md").read_text()
    assert "## OpenVINO graphs" in card
    for accuracy in manifest.graphs.exit_accuracies:
        assert f"| {accuracy:.4f} |" in card
    assert f"{manifest.graphs.same_exit:.2%} of them leave at the same exit" in card


def test_graphs_are_judged_by_images_that_had_no_part_in_them(forecast_run: Path) -> None:
    run = RunDirectory(forecast_run)
    job = JobConfig.model_validate(run.result("routers")["config"])
    fit, select = (counted(export.images_of_part(job, run, part)) for part in ("fit", "select"))
    calibration, rest = map(counted, export.split_fit_part(job, run))
    assert calibration.total() <= rest.total()
    assert calibration + rest == fit
    assert counted(export.unseen_images(job, run)) == rest + select


def counted(images: LabelledImages) -> Counter[bytes]:
    """How often each image is there."""
    return Counter(map(bytes, export.pixels(images)))


@needs_nncf
def test_a_damaged_stage_is_refused_and_named(smoke_copy: RunDirectory) -> None:
    path = smoke_copy.root / "export" / FOLDER / "int8" / "stage3.xml"
    tree = ElementTree.parse(path)
    for data in tree.iterfind("./layers/layer[@type='Const']/data"):
        if data.attrib["element_type"] == "i8":
            data.set("offset", "0")  # other weights than its own
    tree.write(path)
    with pytest.raises(JobError, match="int8 graph of stage 3 is not good enough to publish: exit 3 is right on"):
        run_steps(job(smoke_copy), smoke_copy, ("publish",))
    assert not (smoke_copy.root.parent / "store").exists()


@needs_nncf
def test_a_graph_that_cannot_be_run_is_named(smoke_copy: RunDirectory) -> None:
    (smoke_copy.root / "export" / FOLDER / "float" / "stage2.xml").write_text("<net/>")
    with pytest.raises(JobError, match=r"openvino/float: can't be run"):
        run_steps(job(smoke_copy), smoke_copy, ("publish",))


@needs_nncf
def test_graphs_that_are_too_large_are_refused(smoke_copy: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(smoke_copy.root / "export")
    monkeypatch.setattr(export, "write_graphs_of", lambda *arguments: _copy_graphs(arguments[-1], smoke_copy))
    monkeypatch.setattr(export, "measure_fidelity", lambda *arguments: GOOD)
    with pytest.raises(JobError, match=r"^export\.max_megabytes: the graphs take 2\.0 MB, more than 1$"):
        run_steps(job(smoke_copy, "export.max_megabytes=1"), smoke_copy, ("export",))


def _copy_graphs(folder: Path, run: RunDirectory) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(bytes(2_000_000))


def test_a_bundle_may_go_without_graphs(smoke_copy: RunDirectory) -> None:
    shutil.rmtree(smoke_copy.root / "export")
    run_steps(job(smoke_copy, "export.graphs=false"), smoke_copy, ("export", "publish"))
    bundle = BundleStore(smoke_copy.root.parent / "store").open("smoke")
    assert bundle.manifest.graphs is None
    assert not (bundle.path / FOLDER).exists()
    assert "OpenVINO" not in (bundle.path / "README.md").read_text()


@needs_nncf
def test_a_stage_that_loses_too_much_stays_in_float(smoke_copy: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 2 is off at first; its own stage is left alone, and then all is well."""
    shutil.rmtree(smoke_copy.root / "export")
    fidelities = iter([BAD_AT_2, GOOD])
    monkeypatch.setattr(export, "measure_fidelity", lambda *arguments: next(fidelities))
    run_steps(job(smoke_copy, "export.calibration_images=8"), smoke_copy, ("export",))
    assert smoke_copy.result("export")["graphs"]["float_stages"] == [2]
    folder = smoke_copy.root / "export" / FOLDER / "int8"
    assert [whole_numbers(folder / f"stage{exit}.xml") for exit in (1, 2, 3, 4)] == [2, 0, 3, 3]


@needs_nncf
def test_lighter_pooling_gives_the_same(forecast_run: Path) -> None:
    from offramp_training.graphs.convert import convert, join
    from offramp_training.graphs.cut import quantise_boundaries, uncut
    from offramp_training.graphs.pooling import lighten_pooling
    from offramp_training.graphs.quantise import quantise
    from offramp_training.graphs.toolkit import openvino

    run = RunDirectory(forecast_run)
    job = JobConfig.model_validate(run.result("routers")["config"])
    images_NHWC = export.pixels(export.images_of_part(job, run, "select"))[:8]
    whole = join(convert(load_whole(job, run), export.preprocessing_of(run), with_weights=True))
    rounded = quantise(whole, images_NHWC, 4)
    quantise_boundaries(rounded, 4)
    outputs = []
    for lighter in (False, True):
        if lighter:
            lighten_pooling(rounded)
        kinds = [node.get_type_name() for node in rounded.get_ops()]
        assert kinds.count("AdaptiveAvgPool") == (0 if lighter else 3)
        assert kinds.count("AdaptiveMaxPool") == (0 if lighter else 3)
        compiled = openvino.Core().compile_model(uncut(rounded, 4), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs.append(compiled(images_NHWC)["logits"].copy())
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-3)


# --- the gate ---------------------------------------------------------------------------------------------------------

GOOD = Fidelity((0.6, 0.7, 0.8, 0.9), (0.6, 0.699, 0.81, 0.9), 0.99, (0.0, 0.01, 0.0, 0.0))
BAD_AT_2 = Fidelity((0.6, 0.7, 0.8, 0.9), (0.6, 0.6, 0.8, 0.9), 0.99, (0.0, 0.01, 0.0, 0.0))
MOVED_AT_3 = Fidelity((0.6, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 0.9), 0.97, (0.01, 0.0, 0.02, 0.0))


def test_the_gate_lets_good_graphs_pass() -> None:
    GOOD.check(ExportConfig())


def test_the_gate_names_the_stage_whose_exit_loses_accuracy() -> None:
    with pytest.raises(JobError, match=r"stage 2 is not good .* exit 2 is right on 0\.6000 .* in int8 and on 0\.7000 in float32"):
        BAD_AT_2.check(ExportConfig())


def test_the_gate_names_the_stage_where_frames_leave_otherwise() -> None:
    with pytest.raises(JobError, match=r"stage 3 is not good .* 0\.9700 of the held-out images .* change at exit 3"):
        MOVED_AT_3.check(ExportConfig())


def frames(halting: list[list[float]], guesses: list[list[int]], labels: list[int]) -> Frames:
    """Three exits; σ(s_k) of exits 1 and 2, and what each exit guesses of two classes, a row a frame."""
    logits_NKC = 4.0 * torch.nn.functional.one_hot(torch.tensor(guesses), 2).float()
    outputs = [torch.logit(torch.tensor(column))[:, None].expand(-1, 2) for column in zip(*halting, strict=True)]
    rule = BankRule(torch.tensor([0.3, 0.6, 1.0]), torch.tensor([0.0, 1.0]))
    costs = CostTable(full_macs=10, exit_macs=(3, 6, 10))
    return Frames(logits_NKC, outputs, logits_NKC[:, -1], torch.tensor(labels), rule, costs)


def test_frames_are_compared_by_accuracy_and_by_where_they_leave() -> None:
    exact = frames([[0.9, 0.9], [0.1, 0.9], [0.1, 0.1], [0.1, 0.1]], [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]], [1, 1, 1, 1])
    rounded = frames([[0.9, 0.9], [0.9, 0.9], [0.1, 0.9], [0.1, 0.1]], [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]], [1, 1, 1, 1])
    fidelity = compare(exact, rounded, Control(policy="router"))
    assert fidelity.float_accuracies == (0.5, 0.75, 1.0)
    assert fidelity.int8_accuracies == (0.25, 1.0, 1.0)
    assert fidelity.same_exit == 0.5
    assert fidelity.moved == (0.25, 0.25, 0.0)  # the second leaves at 1 in place of 2, the third at 2 in place of 3
