"""Core ML itself: on macOS it answers packages for real; elsewhere a stand-in takes its place, in the form it has."""

from __future__ import annotations

import dataclasses
import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keras_resnet.errors import ExportError
from keras_resnet.export import native, to_coreml, usage, verify
from keras_resnet.export.mil import Package, open_package
from keras_resnet.training.evaluation import scores_of
from tests.test_export import images_of, network, photographs

coremltools = pytest.importorskip("coremltools")
on_a_mac = pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS alone")
INTERFACES = ("classifier", "vector", "arrays")


@pytest.fixture(scope="module", params=INTERFACES)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Package]:
    model = network("basic")
    path = tmp_path_factory.mktemp("native") / "a.mlpackage"
    to_coreml(model, path, interface=request.param, labels=list("zyxwv"))
    return model, open_package(path)


@on_a_mac
@pytest.mark.parametrize("exported", INTERFACES, indirect=True)
def test_core_ml_answers_as_the_replay_does(exported: tuple[Any, Package]) -> None:
    model, package = exported
    found = verify(package.path, model, images_of(photographs(10))).native
    assert found is not None
    assert not found.remark
    assert found.agreement is not None
    assert found.agreement >= 0.9
    assert found.largest_difference is not None
    assert found.largest_difference <= 0.01
    assert found.devices is None or sum(found.devices.values()) > 5


class Stand:
    """What coremltools' MLModel is on macOS, as far as it is used: computed by the replay."""

    def __init__(self, package: Package, share: float = 0.0) -> None:
        self.package, self.share = package, share

    def predict(self, given: dict[str, Any]) -> dict[str, Any]:
        (image,) = given.values()
        if self.package.is_pixels:
            assert isinstance(image, Image.Image)
            pixels = np.asarray(image)[None]
        else:
            assert (image.dtype, image.shape) == (np.float32, (1, 32, 32, 3))
            pixels = image.astype(np.uint8)
        (scores,) = np.roll(self.package.answer(pixels), 1, axis=-1) * self.share + self.package.answer(pixels)
        if self.package.labels is None:
            return {"scores": scores[None]}
        named = sorted(zip(self.package.labels, scores.tolist(), strict=True))  # in an order of its own
        return {"classLabel": "z", "classLabel_probs": dict(named)}

    def get_compiled_path(self) -> str:
        return "compiled"


class MLNeuralEngineComputeDevice: ...


class MLCPUComputeDevice: ...


def plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compute plan of a constant, a convolution on the engine, and a softmax that it does not take."""
    from coremltools.models import compute_plan

    engine, cpu = MLNeuralEngineComputeDevice(), MLCPUComputeDevice()
    space = types.SimpleNamespace
    usage_of = {
        "const": None,
        "conv": space(preferred_compute_device=engine, supported_compute_devices=[cpu, engine]),
        "softmax": space(preferred_compute_device=cpu, supported_compute_devices=[cpu]),
    }
    operations = [space(operator_name=name) for name in usage_of]
    program = space(functions={"main": space(block=space(operations=operations))})
    found = space(
        model_structure=space(program=program),
        get_compute_device_usage_for_mlprogram_operation=lambda operation: usage_of[operation.operator_name],
    )
    loader = space(load_from_path=lambda path: found)
    monkeypatch.setattr(compute_plan, "MLComputePlan", loader)


def test_what_core_ml_gives_is_compared_by_label_and_by_chip(
    exported: tuple[Any, Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, package = exported
    pixels = photographs(6)
    plan(monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", lambda path: Stand(package))
    found = native.run_here(package, pixels, package.answer(pixels), scores_of(model)(pixels))
    assert found is not None
    assert (found.agreement, found.largest_difference) == (1.0, 0.0)
    assert found.devices == {"NeuralEngine": 1, "CPU": 1}
    assert found.left == ("softmax",)
    text = usage._native(dataclasses.asdict(found))
    assert text["not for the Neural Engine"] == "softmax"


@pytest.mark.parametrize("exported", ["vector"], indirect=True)
def test_a_core_ml_that_answers_otherwise_or_not_at_all_is_said(
    exported: tuple[Any, Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    from keras_resnet.export import verification

    model, package = exported
    pixels, images = photographs(6), images_of(photographs(6))
    expected = scores_of(model)(pixels)
    real = coremltools.models.MLModel
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(
        coremltools.models, "MLModel", lambda path, **options: real(path, **options) if options else Stand(package, 9.0)
    )
    with pytest.raises(ExportError, match="Core ML itself agrees with the network on"):
        verify(package.path, model, images)

    def refuses(path: str) -> None:
        raise RuntimeError("needs a newer system\nand more")

    monkeypatch.setattr(coremltools.models, "MLModel", refuses)
    found = native.run_here(package, pixels, expected, expected)
    assert found is not None
    assert found.remark == "needs a newer system"
    assert usage._native(dataclasses.asdict(found)) == {"not run": "needs a newer system"}
    verified = verification.compare(expected, expected, images.labels, "a", None)
    assert verification._with_native(verified, found, None).native is found  # it is said, and condemns nothing


@pytest.mark.skipif(sys.platform == "darwin", reason="what happens elsewhere")
@pytest.mark.parametrize("exported", ["vector"], indirect=True)
def test_elsewhere_nothing_is_run(exported: tuple[Any, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    model, package = exported
    monkeypatch.delattr(coremltools.models, "MLModel")
    assert native.run_here(package, photographs(1), np.zeros((1, 5)), np.zeros((1, 5))) is None
    monkeypatch.undo()
    assert verify(package.path, model, images_of(photographs(4))).native is None
