"""Folders for the hub: what timm, transformers and we ourselves read in them is the network that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from huggingface_hub import ModelCard
from keras import ops
from PIL import Image

from keras_resnet import build, from_torch, load_weights, preprocessing_of, save_hub_folder, save_weights_as
from keras_resnet.configs import classes_from_config, preprocessing_from_config
from keras_resnet.errors import UsageError
from keras_resnet.naming import differences
from keras_resnet.preprocessing import CAFFE, IMAGENET, SYMMETRIC, Preprocessing, fit_image
from keras_resnet.publishing import _crop_pct
from keras_resnet.registry import WEIGHTS
from keras_resnet.specs import VARIANTS
from tests.references import LOGITS_TOLERANCE, fill, images, import_torchvision, relative_difference
from tests.test_hub import Client, Server, client, server  # noqa: F401  # fixtures: a hub on this machine

SMALL: dict[str, Any] = {"depths": (1, 2), "widths": (8, 16), "input_shape": (64, 64, 3)}
LABELS = ("cat", "dog", "tench: a fish", "No", "öl")
TIMM, TRANSFORMERS = {"naming": "timm"}, {"naming": "transformers"}


def network(variant: str = "resnet18", **changes: Any) -> keras.Model:
    return fill(build(variant, **{"classes": 5, "classifier_activation": None, **changes}))


def config_in(folder: Path) -> dict[str, Any]:
    """The config as `hub.fetch_address` gives it."""
    config = json.loads((folder / "config.json").read_text())
    processor = folder / "preprocessor_config.json"
    return config | ({"preprocessor_config": json.loads(processor.read_text())} if processor.exists() else {})


def logits(model: keras.Model, x: np.ndarray) -> np.ndarray:
    return ops.convert_to_numpy(model(x, training=False))


# Back here -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "options", "changes", "files"),
    [
        ("resnet18", TIMM, {}, {"config.json", "model.safetensors", "README.md"}),
        ("resnetv2_18", TIMM, {}, {"config.json", "model.safetensors", "README.md"}),
        (
            "resnet50",
            TRANSFORMERS,
            SMALL,
            {"config.json", "preprocessor_config.json", "model.safetensors", "README.md"},
        ),
    ],
    ids=["timm", "timm v2", "transformers"],
)
def test_a_folder_on_the_hub_is_the_network_that_was_written(
    variant: str,
    options: dict[str, str],
    changes: dict[str, Any],
    files: set[str],
    tmp_path: Path,
    client: Client,  # noqa: F811
    server: Server,  # noqa: F811
) -> None:
    model = network(variant, **changes)
    folder = save_hub_folder(model, tmp_path / "net", labels=LABELS, **options)
    assert {path.name for path in folder.iterdir()} == files
    server.files |= {("a/net", path.name): path.read_bytes() for path in folder.iterdir()}
    path, config = client.fetch("hub.fetch_address('hf://a/net')")["value"]
    assert preprocessing_from_config(config) == preprocessing_of(model)
    assert classes_from_config(config) == 5
    again = build(variant, classes=5, **changes)
    load_weights(again, path)
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(again.weights, model.weights, strict=True))


PIXELS = {row.preprocessing for row in WEIGHTS.values()} | {IMAGENET, SYMMETRIC}


@pytest.mark.parametrize("pixels", sorted(PIXELS - {p for p in PIXELS if p.order == "bgr"}, key=str), ids=str)
def test_what_images_need_comes_back(pixels: Preprocessing, tmp_path: Path) -> None:
    model = network(**{**SMALL, "preprocessing": pixels})
    save_hub_folder(model, tmp_path / "a", naming="transformers")
    assert preprocessing_from_config(config_in(tmp_path / "a")) == pixels


@pytest.mark.parametrize("pixels", [IMAGENET, SYMMETRIC, Preprocessing(235, 224, "bicubic"), Preprocessing(288, 288)])
def test_what_images_need_comes_back_in_timms_units(pixels: Preprocessing, tmp_path: Path) -> None:
    save_hub_folder(network(preprocessing=pixels), tmp_path / "a")
    again = preprocessing_from_config(config_in(tmp_path / "a"))
    assert (again.resize, again.crop, again.interpolation) == (pixels.resize, pixels.crop, pixels.interpolation)
    given = np.arange(768, dtype=np.uint8).reshape(16, 16, 3)
    np.testing.assert_allclose(again.normalise(given), pixels.normalise(given), atol=1e-6)


def test_every_resize_comes_back_from_the_fraction_that_timm_keeps() -> None:
    for crop in (32, 64, 160, 176, 224, 288):
        for resize in range(crop, 3 * crop):
            pretrained = {"input_size": [3, crop, crop], "crop_pct": _crop_pct(Preprocessing(resize, crop))}
            assert preprocessing_from_config({"pretrained_cfg": pretrained}).resize == resize
    assert [_crop_pct(Preprocessing(resize, 224)) for resize in (224, 256, 320)] == [1.0, 0.875, 0.7]


def test_the_card_says_what_the_hub_and_people_ask(tmp_path: Path) -> None:
    save_hub_folder(
        network(**SMALL), tmp_path / "my-net", naming="transformers", licence="apache-2.0", datasets=["imagenet-1k"]
    )
    text = (tmp_path / "my-net" / "README.md").read_text()
    card = ModelCard(text).data
    assert (card.license, card.datasets, card.library_name) == ("apache-2.0", ["imagenet-1k"], "transformers")
    assert card.pipeline_tag == "image-classification"
    assert {"keras", "resnet", "transformers"} <= set(card.tags)
    assert "# my-net\n" in text
    assert "short side resized to 73 pixels (bilinear), centre crop of 64, (pixels / 255 - mean) / std" in text
    for snippet in text.split("```python\n")[1:]:
        compile(snippet.split("```")[0], "README.md", "exec")


def test_a_card_claims_no_licence_or_data_that_were_not_given(tmp_path: Path) -> None:
    save_hub_folder(network(**SMALL), tmp_path / "a", naming="transformers")
    card = ModelCard((tmp_path / "a" / "README.md").read_text()).data
    assert (card.license, card.datasets) == (None, None)


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({}, {"naming": "timn"}, "unknown naming 'timn' .*: nearest are timm"),
        ({}, {"naming": "akamaster"}, "unknown naming of a hub folder 'akamaster'"),
        ({}, {"labels": ["a", "b"]}, "labels has 2 names and the network 5 classes"),
        ({"include_top": False}, {}, "has no classifier"),
        ({"stem": "small"}, {}, "timm has no network of .*stem='small': use naming='transformers'"),
        ({"depths": (1, 1, 1, 1)}, {}, "timm has no network"),
        ({"preprocessing": CAFFE}, {}, "timm resizes, crops and takes RGB"),
        ({"preprocessing": Preprocessing(0, 224)}, {}, "timm resizes, crops and takes RGB"),
        ({"preprocessing": CAFFE}, TRANSFORMERS, "transformers takes RGB"),
        ({"stem": "small"}, TRANSFORMERS, "cannot carry this network: stem='small'"),
    ],
)
def test_what_a_library_cannot_say_is_refused_and_nothing_written(
    changes: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        save_hub_folder(build("resnet18", **{"classes": 5, **changes}), tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds other things \(thesis.txt\): name a new folder"):
        save_hub_folder(network(**SMALL), tmp_path, naming="transformers")
    with pytest.raises(UsageError, match="holds other things"):
        save_hub_folder(network(**SMALL), tmp_path / "thesis.txt", naming="transformers")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_earlier_folder_is_replaced_whole(tmp_path: Path) -> None:
    save_hub_folder(network(**SMALL), tmp_path / "a", naming="transformers")
    save_hub_folder(network(classes=7), tmp_path / "a")
    assert classes_from_config(config_in(tmp_path / "a")) == 7
    assert not (tmp_path / "a" / "preprocessor_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# There ---------------------------------------------------------------------------------------------------------------


def timm_or_skip() -> Any:
    try:
        import_torchvision()  # which timm imports
        import timm
    except ImportError as error:
        pytest.skip(f"needs {error.name}: requirements-reference.txt")
    return timm


def answer_of(network: Any, x: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        answer = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return getattr(answer, "logits", answer).numpy()


@pytest.mark.slow
def test_timm_has_every_network_that_a_folder_can_be_of() -> None:
    timm = timm_or_skip()
    for variant, spec in VARIANTS.items():
        if not all(differences(spec, scheme) for scheme in ("torchvision", "timm_v2")) and spec.stem == "imagenet":
            assert timm.is_model(variant), variant


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "channels"), [("resnet18", 3), ("resnet50", 3), ("resnetv2_50", 3), ("resnet18", 1), ("resnet18", 4)]
)
def test_timm_answers_as_the_network_does(variant: str, channels: int, tmp_path: Path) -> None:
    timm = timm_or_skip()
    pixels = Preprocessing(235, 224, "bicubic", mean=(0.5,) * channels, std=(0.25,) * channels)
    model = network(variant, input_shape=(224, 224, channels), preprocessing=pixels)
    folder = save_hub_folder(model, tmp_path / "net", labels=LABELS)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = images(224, 224, channels=channels)
    assert relative_difference(answer_of(theirs, x), logits(model, x)) <= LOGITS_TOLERANCE
    assert tuple(theirs.pretrained_cfg["label_names"]) == LABELS
    data = timm.data.resolve_model_data_config(theirs)
    assert data["interpolation"] == "bicubic"
    assert [list(data[key]) for key in ("input_size", "mean", "std")] == [
        [channels, 224, 224],
        list(pixels.mean),
        list(pixels.std),
    ]
    resize = timm.data.create_transform(**data).transforms[0]
    assert resize.size == 235


@pytest.mark.slow
@pytest.mark.parametrize("naming", ["timm", "torchvision"])
def test_tensors_for_timm_load_there_by_themselves(naming: str, tmp_path: Path) -> None:
    timm = timm_or_skip()
    model = network(input_shape=(64, 64, 3))
    save_weights_as(model, tmp_path / "a.safetensors", naming=naming)
    theirs = timm.create_model("resnet18", num_classes=5, checkpoint_path=str(tmp_path / "a.safetensors")).eval()
    assert relative_difference(answer_of(theirs, images(64, 64)), logits(model, images(64, 64))) <= LOGITS_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "changes"),
    [("resnet18", {}), ("resnet50", {}), ("resnet50_v1", {"epsilon": 1e-5}), ("resnet18", SMALL)],
    ids=str,
)
def test_transformers_answers_as_the_network_does(variant: str, changes: dict[str, Any], tmp_path: Path) -> None:
    try:
        import_torchvision()
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        pytest.skip(f"needs {error.name}: requirements-reference.txt")
    model = network(variant, **changes)
    folder = save_hub_folder(model, tmp_path / "net", naming="transformers", labels=LABELS)
    theirs, loading = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    x = images(*model.input_shape[1:3])
    assert relative_difference(answer_of(theirs.eval(), x), logits(model, x)) <= LOGITS_TOLERANCE
    assert theirs.config.id2label == dict(enumerate(LABELS))

    pixels = preprocessing_of(model)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8))
    found = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="np")["pixel_values"]
    expected = pixels.normalise(fit_image(picture, pixels))
    # Their resize rounds elsewhere than Pillow's: at most one of 255 steps here and there.
    assert np.abs(found[0].transpose(1, 2, 0) - expected).max() <= 1.01 / 255 / min(pixels.std)


def test_a_transformers_folder_comes_back_from_its_tensors_alone(tmp_path: Path) -> None:
    model = network("resnet50", **SMALL)
    folder = save_hub_folder(model, tmp_path / "net", naming="transformers")
    again = from_torch(folder / "model.safetensors", input_shape=(64, 64, 3), classifier_activation=None)
    assert np.array_equal(logits(again, images(64, 64)), logits(model, images(64, 64)))
