"""Files of weights and models: what is written loads anywhere, what does not fit is refused and changes nothing."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_resnet import build, cifar, load_model, load_weights, preprocessing_of
from keras_resnet.depth import recursion_room
from keras_resnet.errors import InputError, UsageError
from tests.references import FAMILIES, fill, images, relative_difference

# The same kernels in another process; how they share out their sums may depend on the threads at hand.
SAME = 1e-6

SPEC = cifar(8)


def answers(model: keras.Model) -> np.ndarray:
    return ops.convert_to_numpy(model(images(32, 32, batch=2), training=False))


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in model.variables]


# What is written loads anywhere

PLAIN_KERAS = """
import pathlib, sys
import keras, numpy as np
folder = pathlib.Path(sys.argv[1])
images = np.load(folder / "images.npy")
answers = {}
for path in sorted(folder.glob("*.keras")):
    model = keras.models.load_model(path)
    answers[path.stem] = keras.ops.convert_to_numpy(model(images, training=False))
    model.save(folder / "again" / path.name)
np.savez(folder / "answers.npz", **answers)
print("keras_resnet" in sys.modules)
"""


@pytest.fixture(scope="module")
def loaded_by_plain_keras(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A network of each family saved, loaded and saved again by a process that does not know this package.

    Gives the folder of the files saved again, our answers, and those of the process.
    """
    folder = tmp_path_factory.mktemp("plain")
    (folder / "again").mkdir()
    np.save(folder / "images.npy", images(32, 32, batch=2))
    mine = {}
    for family, spec in FAMILIES.items():
        model = fill(build(spec))
        model.save(folder / f"{family}.keras")
        mine[family] = answers(model)
    command = [sys.executable, "-c", PLAIN_KERAS, str(folder)]
    child = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "False"
    with np.load(folder / "answers.npz") as theirs:
        return folder / "again", mine, dict(theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_keras_loads_every_family_and_answers_alike(family, loaded_by_plain_keras):
    _, mine, theirs = loaded_by_plain_keras
    assert relative_difference(theirs[family], mine[family]) <= SAME


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_that_plain_keras_wrote_again_is_still_ours(family, loaded_by_plain_keras):
    folder, mine, _ = loaded_by_plain_keras
    path = folder / f"{family}.keras"
    assert relative_difference(answers(load_model(path)), mine[family]) <= SAME
    assert relative_difference(answers(build(FAMILIES[family], weights=path)), mine[family]) <= SAME
    assert preprocessing_of(load_model(path)).crop == 32


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_every_family_load_from_a_file_of_weights(family, tmp_path):
    model = fill(build(FAMILIES[family]))
    path = save(model, tmp_path / "net.weights.h5")
    assert np.array_equal(answers(build(FAMILIES[family], weights=str(path))), answers(model))


def save(model: keras.Model, path: Path) -> Path:
    (model.save if path.suffix == ".keras" else model.save_weights)(path)
    return path


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_of_a_trained_model_load_without_its_optimizer(suffix, tmp_path):
    model = build(SPEC)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.train_on_batch(images(32, 32, batch=4), np.arange(4))
    path = save(model, tmp_path / f"net{suffix}")
    assert np.array_equal(answers(build(SPEC, weights=path)), answers(model))


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_load_into_a_model_that_holds_the_network(suffix, tmp_path):
    def transfer() -> keras.Model:
        base = build(SPEC, include_top=False, pooling="avg", name="base")
        return keras.Sequential([keras.Input((32, 32, 3)), base, layers.Dense(3, name="top")])

    model, other = transfer(), transfer()
    path = save(model, tmp_path / f"net{suffix}")
    load_weights(other, path)
    assert np.array_equal(answers(other), answers(model))
    with pytest.raises(InputError, match="does not fit"):
        load_weights(build(SPEC), path)


def test_after_loading_the_config_tells_how_a_fresh_network_starts(tmp_path):
    spec = FAMILIES["v2 of timm"]
    for options in ({}, {"zero_last_gamma": True}, {"shortcut": "highway"}):
        fresh = build(spec, **options)
        loaded = build(spec, weights=save(fresh, tmp_path / "net.weights.h5"), **options)
        assert loaded.get_config() == fresh.get_config()
    assert loaded.get_layer("stem_conv").get_config()["kernel_initializer"]["class_name"] == "VarianceScaling"


# What does not fit is refused and changes nothing


def truncated(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def zipped(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def text(path: Path) -> Path:
    path.write_text("weights\n" * 100, encoding="utf-8")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def hdf5_without_weights(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(3)
    return path


def with_link(path: Path) -> Path:
    with h5py.File(save(build(SPEC), path), "a") as file:
        del file["layers/dense"]
        file["layers/dense"] = h5py.ExternalLink("/etc/other.h5", "/")
    return path


def with_two_layers_exchanged(path: Path) -> Path:
    """A file in which every layer finds its shapes, but not at its place: Keras fills the others, then raises."""
    with h5py.File(save(fill(build(SPEC), seed=1), path), "a") as file:
        for before, after in (("conv2d", "kept"), ("conv2d_6", "conv2d"), ("kept", "conv2d_6")):
            file.move(f"layers/{before}", f"layers/{after}")
    return path


def saved(suffix: str, **changes) -> Callable[[Path], Path]:
    return lambda tmp: save(build(SPEC, **changes), tmp / f"net{suffix}")


DOES_NOT_FIT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda tmp: tmp / "net.keras", "does not exist"),
    "a folder": (lambda tmp: folder(tmp / "net.keras"), "is not a file"),
    "text.keras": (lambda tmp: text(tmp / "net.keras"), "not a zip file"),
    "text.weights.h5": (lambda tmp: text(tmp / "net.weights.h5"), "file signature not found"),
    "empty.keras": (lambda tmp: truncated(text(tmp / "net.keras"), 0), "not a zip file"),
    "empty.weights.h5": (lambda tmp: truncated(text(tmp / "net.weights.h5"), 0), "cannot be read"),
    "half.keras": (lambda tmp: truncated(saved(".keras")(tmp), 0.5), "not a zip file"),
    "half.weights.h5": (lambda tmp: truncated(saved(".weights.h5")(tmp), 0.5), "truncated file"),
    "nearly whole.keras": (lambda tmp: truncated(saved(".keras")(tmp), 0.999), "cannot be loaded"),
    "nearly whole.weights.h5": (lambda tmp: truncated(saved(".weights.h5")(tmp), 0.999), "truncated file"),
    "zip without a model": (lambda tmp: zipped(tmp / "net.keras", {"a.txt": "b"}), "config.json"),
    "no JSON": (lambda tmp: zipped(tmp / "net.keras", {"config.json": "{"}), "cannot be loaded"),
    "other JSON": (lambda tmp: zipped(tmp / "net.keras", {"config.json": "[1, 2]"}), "cannot be loaded"),
    "deep JSON": (lambda tmp: zipped(tmp / "net.keras", {"config.json": "[" * 10**5}), "cannot be loaded"),
    "HDF5 of others": (
        lambda tmp: hdf5_without_weights(tmp / "net.weights.h5"),
        "no weights of the shapes of stem_conv",
    ),
    "HDF5 with a link": (lambda tmp: with_link(tmp / "net.weights.h5"), "is a link"),
    "HDF5 in another order": (lambda tmp: with_two_layers_exchanged(tmp / "net.weights.h5"), "name=stem_conv"),
    "other classes.keras": (saved(".keras", classes=5), "layer 'head_dense' has shapes ((64, 5), (5,))"),
    "other classes.weights.h5": (saved(".weights.h5", classes=5), "no weights of the shapes of head_dense"),
    "deeper.keras": (saved(".keras", depths=(2, 2, 2)), "unexpected layers stage1_block2_conv1"),
    "deeper.weights.h5": (saved(".weights.h5", depths=(2, 2, 2)), "left over batch_normalization"),
    "bottleneck.keras": (saved(".keras", block="bottleneck"), "missing layers none; unexpected layers"),
    "bottleneck.weights.h5": (saved(".weights.h5", block="bottleneck"), "no weights of the shapes of"),
    "projections.keras": (saved(".keras", shortcut="B"), "unexpected layers stage2_block1_shortcut_conv"),
    "projections.weights.h5": (saved(".weights.h5", shortcut="B"), "left over batch_normalization"),
    "without top.keras": (saved(".keras", include_top=False), "missing layers head_dense; unexpected layers none"),
    "without top.weights.h5": (saved(".weights.h5", include_top=False), "no weights of the shapes of head_dense"),
}


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras, of the file that it cannot place
@pytest.mark.parametrize("case", DOES_NOT_FIT)
def test_a_file_that_does_not_fit_is_refused_in_one_line_and_changes_nothing(case, tmp_path):
    make, said = DOES_NOT_FIT[case]
    path = make(tmp_path)
    model = fill(build(SPEC))
    before = values(model)
    with pytest.raises(InputError) as refused:
        load_weights(model, path)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model), strict=True))
    with pytest.raises(InputError):
        build(SPEC, weights=path)


def test_a_classifiers_file_does_not_fit_a_network_without_top(tmp_path):
    for suffix, said in ((".keras", "unexpected layers head_dense"), (".weights.h5", "left over dense")):
        path = save(build(SPEC), tmp_path / f"net{suffix}")
        with pytest.raises(InputError, match=said):
            build(SPEC, include_top=False, weights=path)


@pytest.mark.parametrize("name", ["net.zip", "net", "net.keras.zip", "weights.h5.txt"])
def test_other_kinds_of_files_are_refused(name, tmp_path):
    with pytest.raises(UsageError, match="unknown weight set"):
        build(SPEC, weights=tmp_path / name)
    (tmp_path / name).write_text("there")
    with pytest.raises(UsageError, match=r"is of none of the kinds \.weights\.h5, \.keras, \.safetensors") as refused:
        build(SPEC, weights=tmp_path / name)
    assert name in str(refused.value)


def test_weights_alone_are_no_model(tmp_path):
    with pytest.raises(UsageError, match="holds weights only: build the network"):
        load_model(save(build(SPEC), tmp_path / "net.weights.h5"))


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    given = keras.Input((2,))
    model = keras.Model(given, layers.Lambda(lambda x: (print("ran"), x)[1])(given))
    model.save(tmp_path / "net.keras")
    capsys.readouterr()
    with pytest.raises(InputError, match="cannot be loaded as a Keras model"):
        load_model(tmp_path / "net.keras")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_a_damaged_file_loads_or_is_refused_and_then_changes_nothing(suffix, tmp_path):
    data = save(fill(build(SPEC), seed=1), tmp_path / f"whole{suffix}").read_bytes()
    model, path = fill(build(SPEC)), tmp_path / f"damaged{suffix}"
    before, refused = values(model), 0
    for seed in range(40):
        start = np.random.default_rng(seed).integers(len(data) // 2)
        path.write_bytes(data[:start] + bytes(64) + data[start + 64 :])
        try:
            load_weights(model, path)
        except InputError:
            refused += 1
            assert all(np.array_equal(a, b) for a, b in zip(before, values(model), strict=True)), seed
        else:
            fill(model)
    assert refused > 0  # HDF5 has no checksums: zeros among the weights load


# Networks deeper than Python's recursion limit


@pytest.fixture
def pythons_own_limit():
    """Some libraries raise the limit of the whole process and leave it so: coremltools does."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.slow
def test_a_deep_network_builds_saves_and_loads_at_pythons_own_recursion_limit(tmp_path, pythons_own_limit):
    before = sys.getrecursionlimit()
    model = fill(build(cifar(326)))
    model.save(tmp_path / "deep.keras")
    again = load_model(tmp_path / "deep.keras")
    assert sys.getrecursionlimit() == before
    assert np.array_equal(answers(again), answers(model))


@pytest.mark.slow
def test_a_deep_plain_network_within_another_model_loads_where_keras_alone_does_not(tmp_path, pythons_own_limit):
    # Without shortcuts Keras goes down one call a layer. Should it learn to do without, the room can go.
    x = keras.Input((32, 32, 3))
    deep = build(cifar(386, shortcut="none", widths=(2, 2, 2)), name="deep")
    keras.Model(x, deep(x)).save(tmp_path / "outer.keras")
    with pytest.raises(RecursionError):
        keras.models.load_model(tmp_path / "outer.keras")
    assert load_model(tmp_path / "outer.keras").get_layer("deep").name == "deep"


@pytest.mark.slow
def test_the_1202_layer_network_builds_within_a_minute_and_trains_a_step():
    before = time.process_time()
    model = build("cifar_resnet1202")
    assert time.process_time() - before < 60  # processor seconds: others may be busy on the machine
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    kernel = model.get_layer("stage1_block1_conv1").get_weights()[0]
    loss = model.train_on_batch(images(32, 32, batch=2), np.array([0, 1]))
    assert np.isfinite(loss)
    assert np.abs(model.get_layer("stage1_block1_conv1").get_weights()[0] - kernel).max() > 0


def test_the_recursion_limit_is_back_after_an_error():
    before = sys.getrecursionlimit()
    with pytest.raises(KeyError), recursion_room(10**4):
        assert sys.getrecursionlimit() > 10**4
        raise KeyError
    assert sys.getrecursionlimit() == before


def test_the_recursion_limit_is_back_after_threads_that_overlap():
    before = sys.getrecursionlimit()
    one, other = recursion_room(10**4), recursion_room(2 * 10**4)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)  # not in the order of a stack
    assert sys.getrecursionlimit() > 2 * 10**4
    other.__exit__(None, None, None)
    assert sys.getrecursionlimit() == before


def test_a_higher_limit_of_the_user_is_kept():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        with recursion_room(10):
            assert sys.getrecursionlimit() == 50_000
    finally:
        sys.setrecursionlimit(before)
