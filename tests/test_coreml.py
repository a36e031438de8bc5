"""Core ML packages: what operations they are of, and that they answer as their networks do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnet.errors import InputError, UsageError
from keras_resnet.export import inspect, to_coreml, verify
from keras_resnet.export.concrete import exact_normalisation, fold
from keras_resnet.export.graph import simplify
from keras_resnet.export.mil import Name, layer_noise, layer_of, open_package
from keras_resnet.export.mil_forms import FORMS, TARGETS
from keras_resnet.export.noise import relative
from keras_resnet.export.prediction import open_answerer
from keras_resnet.export.sensitivity import units
from keras_resnet.preprocessing import preprocessing_of
from keras_resnet.training.evaluation import scores_of
from tests.test_export import FAMILY, images_of, network, photographs

pytest.importorskip("coremltools")

# float16 has 11 bits, and a probability moves by about as much as its logit
HALF, SINGLE = 3e-3, 1e-5
ROOT = Path(__file__).parent.parent
PADS = {"pre-activation, stride last": 1, "shortcut A": 1, "highway": 1}  # a pool below zero; channels of a shortcut
BATCH_NORMS = {"pre-activation": 3, "pre-activation, stride last": 5}  # which no convolution stands before


@pytest.mark.parametrize("quantize", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAMILY)
def test_a_package_answers_as_its_network_and_holds_no_needless_operation(
    name: str, quantize: str, tmp_path: Path
) -> None:
    model, pixels = network(name), photographs(20)
    package = open_package(to_coreml(model, tmp_path / "a.mlpackage", quantize=quantize).path)
    scores, expected = package.answer(pixels), scores_of(model)(pixels)
    assert np.abs(scores - expected).max() <= (HALF if quantize == "float16" else SINGLE)
    assert np.mean(scores.argmax(-1) == expected.argmax(-1)) >= 0.95
    kinds = Counter(step.kind for step in package.steps)
    assert kinds["transpose"] == 0
    assert kinds["pad"] == PADS.get(name, 0)
    assert kinds["batch_norm"] == BATCH_NORMS.get(name, 0)
    assert kinds["cast"] == (2 if quantize == "float16" else 0)
    if quantize == "float32":
        assert max(layer_noise(package, model, pixels).values()) <= 1e-4


def test_a_package_made_twice_holds_the_same_program(tmp_path: Path) -> None:
    model, files = network("basic"), []
    for name in ("a", "b"):
        folder = to_coreml(model, tmp_path / f"{name}.mlpackage").path / "Data" / "com.apple.CoreML"
        files.append((folder / "weights" / "weight.bin").read_bytes())
    assert files[0] == files[1]


# Wide enough that weights are compressed: coremltools leaves tensors of 2,048 numbers and fewer alone.
WIDE: dict[str, Any] = {"widths": (32, 64)}
# The largest difference of a probability; what 4 bits and pruning without training do is shown by measurement.
LARGEST = {"float16": 0.003, "float32": 1e-5, "int8": 0.02, "w8a8": 0.05, "palette8": 0.02, "palette6": 0.05}
KINDS = {
    "int8": "constexpr_affine_dequantize",
    "w8a8": "constexpr_affine_dequantize",
    "int4": "constexpr_blockwise_shift_scale",
    "palette8": "constexpr_lut_to_dense",
    "palette6": "constexpr_lut_to_dense",
    "palette4": "constexpr_lut_to_dense",
    "prune": "constexpr_sparse_to_dense",
}


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.slow) if form in ("palette8", "palette4") else form for form in FORMS]
)
def test_every_form_is_what_it_says_and_is_judged_by_replay(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keras_resnet.export.verification.MIN_AGREEMENT", 0.0)
    model, calibration = network("basic", **WIDE), images_of(photographs(24))
    artifact = to_coreml(model, tmp_path / "a.mlpackage", quantize=form, calibration=calibration)
    found, package = artifact.read(), open_package(artifact.path)
    kinds = Counter(step.kind for step in package.steps)
    assert (kinds[KINDS.get(form, "")] >= 4) == (form in KINDS)
    assert bool(kinds["quantize"]) == (form == "w8a8")
    assert (found["format"], found["accuracy_verified"]) == (f"coreml-{form}", False)
    assert found["oldest_system"] == {"w8a8": "iOS17", "int4": "iOS18", "palette4": "iOS18"}.get(form, "iOS16")
    pixels = calibration.pixels(preprocessing_of(model))
    difference = np.abs(package.answer(pixels) - scores_of(model)(pixels)).max()
    assert found["verification"]["largest_score_difference"] == pytest.approx(difference, abs=1e-6)
    assert difference <= LARGEST.get(form, 1.0)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=pytest.mark.slow) if form in ("palette8", "palette4") else form
        for form in FORMS
        if FORMS[form].grid and not FORMS[form].activations
    ],
)
def test_weights_that_were_rounded_with_images_answer_nearer_than_plain_ones(form: str, tmp_path: Path) -> None:
    model, pixels = network("basic", **WIDE), photographs(40)
    noise, sizes = {}, {}
    for name, calibration in (("plain", None), ("rounded", images_of(pixels[:24]))):
        path = tmp_path / f"{name}.mlpackage"
        artifact = to_coreml(model, path, quantize=form, calibration=calibration, min_agreement=0)
        noise[name] = layer_noise(open_package(artifact.path), model, pixels[24:])["scores"]
        sizes[name] = (artifact.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").stat().st_size
    assert noise["rounded"] < 0.8 * noise["plain"]
    # coremltools finds the values that they were rounded to: where it had to pack more, the file would show it.
    assert sizes["rounded"] == pytest.approx(sizes["plain"], rel=0.02)


@pytest.mark.parametrize("name", ["basic", "pre-activation", "highway", "shortcut A"])
def test_every_value_that_is_computed_with_lies_in_bytes_from_zero(name: str, tmp_path: Path) -> None:
    model, calibration = network(name), images_of(photographs(24))
    path = tmp_path / "a.mlpackage"
    package = open_package(to_coreml(model, path, quantize="w8a8", calibration=calibration, min_agreement=0).path)
    made = {step.name: step for step in package.steps}
    for step in package.steps:
        if step.kind in ("conv", "linear", "max_pool", "reduce_mean"):
            assert made[step.inputs["x"].name].kind == "dequantize"
        if step.kind == "add" and step.name != "image__biased__":
            assert {made[step.inputs[side].name].kind for side in "xy"} == {"dequantize"}
        if step.kind == "quantize":
            assert not np.any(step.inputs.get("zero_point", 0))
            never_negative = made[step.inputs["input"].name].kind in ("relu", "sigmoid")
            assert step.inputs["output_dtype"] == "uint8" or not never_negative
    (last,) = [step for step in package.steps if step.kind == "softmax"]
    assert made[last.inputs["x"].name].kind == "linear"  # equal bytes could not be told apart
    pixels = photographs(20, seed=3)
    noise = relative(package.answer(pixels), scores_of(model)(pixels))
    assert noise <= 0.05


def test_a_convolution_that_took_its_normalisation_in_is_compared_with_what_that_gives(tmp_path: Path) -> None:
    model, calibration = network("basic"), images_of(photographs(24))
    package = open_package(to_coreml(model, tmp_path / "a.mlpackage", quantize="int8", calibration=calibration).path)
    noise = layer_noise(package, model, photographs(8))
    assert {"stem_conv", "stage1_block1_conv1"} <= noise.keys()
    assert max(noise.values()) <= 0.03


@pytest.mark.parametrize(
    ("form", "target", "groups", "made_for"),
    [
        ("palette6", None, 1, "iOS16"),
        ("palette6", "iOS18", 2, "iOS18"),
        ("palette4", None, 2, "iOS18"),
        ("palette4", "iOS16", 1, "iOS16"),
    ],
)
def test_palettes_are_of_some_filters_where_the_system_can_have_that(
    form: str, target: str | None, groups: int, made_for: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibration": images_of(photographs(24)), "min_agreement": 0, "target": target}
    artifact = to_coreml(network("basic", **WIDE), tmp_path / "a.mlpackage", quantize=form, **options)
    tables = [s.inputs["lut"] for s in open_package(artifact.path).steps if s.kind == "constexpr_lut_to_dense"]
    assert tables[0].shape[0] == (groups if groups > 1 else 1 << int(form[-1]))  # of the stem: 32 filters
    assert artifact.read()["oldest_system"] == made_for


@pytest.mark.parametrize("name", ["image_classifier", "ecosystem_headcount"])
def test_the_name_of_a_network_is_not_taken_for_that_of_a_layer(name: str, tmp_path: Path) -> None:
    found = []
    for called in (name, "plainly"):
        keras.utils.set_random_seed(0)
        model, calibration = network("basic", **WIDE, name=called), images_of(photographs(24))
        options: dict[str, Any] = {"calibration": calibration, "keep_float": ["head"], "min_agreement": 0}
        package = open_package(to_coreml(model, tmp_path / f"{called}.mlpackage", quantize="w8a8", **options).path)
        found.append([(s.kind, s.inputs.get("scale"), s.inputs.get("output_dtype")) for s in package.steps])
    assert repr(found[0]) == repr(found[1])


@pytest.mark.parametrize("form", ["int8", "w8a8", "palette6"])
def test_parts_that_are_named_stay_in_float(form: str, tmp_path: Path) -> None:
    model, calibration = network("basic", **WIDE), images_of(photographs(24))
    graph = simplify(fold(model, exact_normalisation(preprocessing_of(model))))
    layers = {layer: part for part, names in units(graph).items() for layer in names}

    def part_of(value: str) -> str:
        return layers[layer_of(value, layers) or ""]

    options: dict[str, Any] = {"quantize": form, "calibration": calibration, "min_agreement": 0}
    artifact = to_coreml(model, tmp_path / "a.mlpackage", keep_float=["stem", "stage2_block1"], **options)
    package = open_package(artifact.path)
    packed = {
        part_of(step.name) for step in package.steps if step.kind == "conv" and isinstance(step.inputs["weight"], Name)
    }
    assert packed == {"stage1_block1"}
    rounded = {part_of(step.inputs["input"].name) for step in package.steps if step.kind == "quantize"}
    assert rounded == ({"stage1_block1", "head"} if form == "w8a8" else set())
    for step in package.steps:
        if step.kind == "conv" and part_of(step.name) == "stage2_block1":
            kernel = graph.get_layer(layer_of(step.name, layers)).get_weights()[0]
            np.testing.assert_allclose(step.inputs["weight"].transpose(2, 3, 1, 0), kernel, rtol=1e-3, atol=1e-6)
    assert artifact.read()["in_float"] == {"parts": ["stem", "stage2_block1"]}
    assert "stage2_block1" in artifact.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", TARGETS)
def test_a_package_asks_for_the_system_that_was_named(target: str, tmp_path: Path) -> None:
    import coremltools

    path = to_coreml(network("basic"), tmp_path / "a.mlpackage", target=target).path
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    assert spec.specificationVersion == coremltools.target[target].value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantize": "int9"}, "unknown number format 'int9'"),
        ({"target": "iOS99"}, "unknown system 'iOS99'"),
        ({"quantize": "int4", "target": "iOS16"}, "cannot hold 'int4' weights: iOS18 is the oldest that can"),
        ({"quantize": "int8", "target": "iOS15"}, "cannot hold 'int8' weights: iOS16"),
        ({"effort": "hgih"}, "unknown effort 'hgih'"),
        ({"keep_float": ["stem"]}, "is for weights of fewer bits, not for 'float16'"),
        ({"keep_float": "stem", "quantize": "int8"}, "must be a list of parts"),
    ],
)
def test_what_a_package_cannot_be_is_refused_before_anything_is_opened(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        to_coreml("resnet18:nowhere", tmp_path / "a.mlpackage", **options)


def test_ranges_need_images_or_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'w8a8' needs calibration="):
        to_coreml(network("basic"), tmp_path / "a.mlpackage", quantize="w8a8")


def test_a_package_can_be_read_by_others_and_leaves_nothing_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    calibration = images_of(photographs(24))
    path = to_coreml(network("basic"), tmp_path / "out" / "a.mlpackage", quantize="w8a8", calibration=calibration).path
    assert list((tmp_path / "temporary").rglob("*")) == []
    assert sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")) == []
    for entry in [path, *path.rglob("*")]:
        assert entry.stat().st_mode & 0o444 == 0o444
        assert entry.is_file() or entry.stat().st_mode & 0o111 == 0o111


def test_exports_at_the_same_time_wait_for_one_another(tmp_path: Path) -> None:
    models = {name: network(name) for name in ("basic", "bottleneck")}
    with ThreadPoolExecutor(2) as pool:
        made = {name: pool.submit(to_coreml, model, tmp_path / f"{name}.mlpackage") for name, model in models.items()}
    for name, model in models.items():
        scores = open_package(made[name].result().path).answer(photographs(8))
        assert np.abs(scores - scores_of(model)(photographs(8))).max() <= HALF


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = network("basic")
    return model, to_coreml(model, tmp_path_factory.mktemp("whole") / "a.mlpackage").path


@pytest.fixture(scope="module")
def whole(exported: tuple[Any, Path]) -> Path:
    return exported[1]


def test_a_package_is_verified_and_answers_like_its_model(exported: tuple[Any, Path]) -> None:
    model, whole = exported
    found = verify(whole, model, images_of(photographs(10)))
    assert (found.agreement, found.count, found.latency) == (1.0, 10, None)
    answerer = open_answerer(whole)
    assert answerer.labels == tuple("01234")
    assert (answerer.preprocessing.resize, answerer.preprocessing.crop) == (37, 32)  # of the manifest


def test_a_package_moved_alone_still_knows_what_it_is(exported: tuple[Any, Path], tmp_path: Path) -> None:
    model, whole = exported
    alone = shutil.copytree(whole, tmp_path / "alone.mlpackage")
    found = inspect(alone).manifest
    assert found is not None
    assert found["model"]["name"] == "resnet18"
    assert open_answerer(alone).preprocessing == preprocessing_of(model)


def edited(package: Path, edit: Callable[[Any], None]) -> None:
    """Change the specification of a package, a message of Model.proto, in place."""
    import coremltools

    file = package / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = coremltools.proto.Model_pb2.Model.FromString(file.read_bytes())
    edit(spec)
    file.write_bytes(spec.SerializeToString())


def _a_class_less(spec: Any) -> None:
    [block] = spec.mlProgram.functions["main"].block_specializations.values()
    [classify] = [operation for operation in block.operations if operation.type == "classify"]
    [classes] = classify.inputs["classes"].arguments
    classes.value.immediateValue.list.values.pop()
    classes.value.type.listType.length.constant.size = 4


def _no_json(spec: Any) -> None:
    spec.description.metadata.userDefined["keras_resnet.manifest"] = "{"


@pytest.mark.parametrize(
    ("edit", "message"),
    [(_a_class_less, "number of classes must match"), (_no_json, "the manifest inside .* is damaged")],
)
def test_what_a_package_says_of_itself_is_checked(
    edit: Callable[[Any], None], message: str, whole: Path, tmp_path: Path
) -> None:
    package = shutil.copytree(whole, tmp_path / "a.mlpackage")
    edited(package, edit)
    with pytest.raises(InputError, match=message):
        open_package(package)


@pytest.mark.parametrize(
    "harm", ["no manifest", "no weights", "cut weights", "no model", "empty model", "foreign model", "a file more"]
)
def test_a_harmed_package_is_refused_by_name(harm: str, whole: Path, tmp_path: Path) -> None:
    path = shutil.copytree(whole, tmp_path / "harmed.mlpackage")
    inside = path / "Data" / "com.apple.CoreML"
    weights, model = inside / "weights" / "weight.bin", inside / "model.mlmodel"
    if harm == "a file more":
        (inside / "more.bin").write_bytes(b"x")
        assert open_package(path).labels == tuple("01234")
        return
    match harm:
        case "no manifest":
            (path / "Manifest.json").unlink()
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-2000])
        case "no model":
            model.unlink()
        case "empty model":
            model.write_bytes(b"")
        case "foreign model":
            model.write_bytes(b"no model at all" * 100)
    with pytest.raises(InputError, match=r"harmed\.mlpackage"):
        open_package(path)


@pytest.mark.parametrize("form", ["float16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named_and_nothing_is_written(form: str, value: float, tmp_path: Path) -> None:
    model = network("basic")
    layer = model.get_layer("stage1_block1_conv1")
    layer.set_weights([np.full_like(layer.get_weights()[0], value)])
    with pytest.raises(InputError, match="weights of layer 'stage1_block1_conv1' are no numbers"):
        to_coreml(model, tmp_path / "out" / "a.mlpackage", quantize=form)
    assert not (tmp_path / "out").exists()


def test_a_package_of_other_classes_is_another_networks(exported: tuple[Any, Path]) -> None:
    _, whole = exported
    with pytest.raises(InputError, match=r"a\.mlpackage' gives 5 numbers, model 'resnet18' 7: it is another's"):
        verify(whole, network("basic", classes=7), images_of(photographs(10), classes=7))


def test_a_package_says_who_made_it_and_what_it_is(tmp_path: Path) -> None:
    import coremltools

    about = {"author": "A. Nother", "licence": "Apache-2.0"}
    artifact = to_coreml(network("basic"), tmp_path / "a.mlpackage", **about)  # type: ignore[arg-type]
    model = coremltools.models.MLModel(str(artifact.path), skip_model_load=True)
    assert (model.author, model.license) == ("A. Nother", "Apache-2.0")
    assert model.version
    assert model.short_description.startswith("resnet18 as float16")
    assert "RGB" in model.input_description["image"]
    assert set(model.output_description) == {"classLabel", "classLabel_probs"}
    inside = json.loads(model.user_defined_metadata["keras_resnet.manifest"])
    assert inside["model"] == artifact.read()["model"]
    assert not {"verification", "verified_by"} & inside.keys()  # of what was not run yet nothing is said
    assert artifact.read()["verified_by"] == "nothing: no images were given"


def test_random_damage_is_refused_or_answers_in_every_verb_and_never_ends_the_process(
    exported: tuple[Any, Path], tmp_path: Path
) -> None:
    model, package = exported
    model.save(tmp_path / "model.keras")
    Image.fromarray(photographs(1)[0]).save(tmp_path / "a.png")
    program = """
import sys, pathlib, shutil, random
import numpy as np
from keras_resnet.errors import KerasResnetError
from keras_resnet.export import inspect, predict, verify
from keras_resnet.weights import load_model
from tests.test_export import images_of, photographs
whole, scratch = map(pathlib.Path, sys.argv[1:])
model, pixels = load_model(scratch / "model.keras"), photographs(2)
verbs = {
    "inspect": inspect,
    "verify": lambda path: verify(path, model, images_of(pixels)),
    "predict": lambda path: predict(path, [scratch / "a.png"]),
}
refused = dict.fromkeys(verbs, 0)
for seed in range(20):
    dice = random.Random(seed)
    path = shutil.copytree(whole, scratch / f"{seed}.mlpackage")
    file = dice.choice([f for f in sorted(path.rglob("*")) if f.is_file()])
    content = bytearray(file.read_bytes())
    if seed % 4 == 0:
        del content[dice.randrange(len(content)):]
    else:
        for _ in range(dice.randrange(1, 30)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    file.write_bytes(content)
    for name, verb in verbs.items():
        try:
            verb(path)
        except KerasResnetError:
            refused[name] += 1
print(*refused.values())
"""
    command = [sys.executable, "-c", program, str(package), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = list(map(int, done.stdout.split()))
    assert len(refused) == 3
    assert all(6 <= times < 20 for times in refused), refused  # some changed bytes are weights, and answer


@pytest.mark.slow
def test_a_killed_export_leaves_no_package(tmp_path: Path) -> None:
    network("basic").save(tmp_path / "a.keras")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "keras_resnet.cli", "export", str(tmp_path / "a.keras"), "--format", "coreml"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [*command, "--out", str(out / "a.mlpackage")],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    while not list(out.glob(".partial-*/*")) and process.poll() is None:  # the converter has begun to write
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert [entry.name for entry in out.iterdir() if not entry.name.startswith(".")] == []
    assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_exports_of_several_processes_into_one_folder_do_not_disturb_one_another(tmp_path: Path) -> None:
    models = {name: network(name) for name in ("basic", "bottleneck")}
    processes = []
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
        command = [sys.executable, "-m", "keras_resnet.cli", "export", str(tmp_path / f"{name}.keras")]
        command += ["--format", "coreml", "--out", str(tmp_path / "out" / f"{name}.mlpackage")]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    for name, model in models.items():
        scores = open_package(tmp_path / "out" / f"{name}.mlpackage").answer(photographs(4))
        assert np.abs(scores - scores_of(model)(photographs(4))).max() <= HALF
    assert not [entry for entry in (tmp_path / "out").iterdir() if entry.name.startswith(".")]
