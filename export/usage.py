"""The page of an exported file: what `report` says of it, and how an app uses it.

Vision, Apple's way from a photograph to a network, offers three ways to cut or stretch it, none of which is what
networks are trained with: a region of interest is. Source: Apple's documentation of VNImageCropAndScaleOption and of
VNImageBasedRequest.regionOfInterest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from keras_resnet.export import report
from keras_resnet.export.snippets import snippets


def page(
    manifest: Mapping[str, Any],
    pixels: np.ndarray | None = None,
    operations: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The page of one exported file, from its manifest.

    pixels: what it was judged on, uint8 [n, height, width, 3]; operations: kind, name and result of each.
    """
    sections = [
        *report.disagreement_section(manifest["verification"], pixels, manifest["labels"]),
        *report.targets_section(manifest["targets"]),
        *in_an_app(manifest),
        *report.graph_section(operations),
    ]
    return report.artifact_page(manifest, *sections)


# Vision --------------------------------------------------------------------------------------------------------------


def seen_share(preprocessing: Mapping[str, Any]) -> float | None:
    """How much of a picture's short side the network is to see, 0..1; None where pictures are not resized.

    preprocessing: what a manifest says, the fields of `Preprocessing`.
    """
    resize, crop = preprocessing["resize"], preprocessing["crop"]
    return crop / resize if resize and crop else None


def in_an_app(manifest: Mapping[str, Any]) -> list[str]:
    """How an app uses a file (HTML).

    Of a Core ML package: how Swift hands a photograph over so that it sees what the network was trained on.
    """
    if manifest["answers"] != "embedding" and manifest["format"].startswith("tflite-"):
        return [report.section("In an app", _programs(manifest))]
    if not manifest["format"].startswith("coreml-"):
        return []
    contract = manifest["contract"]
    share = seen_share(manifest["preprocessing_inside"])
    if not contract["input"]["image"].startswith("image"):
        text = "<p>An array in: <code>MLModel.prediction(from:)</code> takes it as it is, Vision does not.</p>"
        return [report.section("In an app", text)]
    if share is None:
        words = (
            "The network takes pictures of its own size. Hand over one of exactly that size; each of Vision's options "
            "leaves it as it is."
        )
        region = "// The picture has the network's size already."
    elif share == 1:
        words = (
            "<code>.centerCrop</code> is what the network was trained with: the middle square of the picture. "
            "<code>.scaleFill</code> stretches, and <code>.scaleFit</code> leaves empty bars."
        )
        region = "request.imageCropAndScaleOption = .centerCrop"
    else:
        words = (
            f"The network was trained on the middle square of {share:.4g} of a picture's short side. None of Vision's "
            "options is that: <code>.centerCrop</code> takes the whole short side, <code>.scaleFill</code> stretches, "
            "<code>.scaleFit</code> leaves empty bars. A region of interest is; what is in it is square, so "
            "<code>.scaleFill</code> behind it stretches nothing."
        )
        region = REGION.format(share=f"{share:.10g}")
    native = (manifest.get("verification") or {}).get("native")
    section = [report.section("Core ML itself", report.facts(_native(native)))] if native else []
    result = RESULTS["classLabel" if "classLabel" in contract["output"] else "vector"]
    code = SWIFT.format(file=manifest["file"].replace(".mlpackage", ".mlmodelc"), region=region, result=result)
    return [*section, report.section("In an app", f"<p>{words}</p><pre>{escape(code)}</pre>")]


def _programs(manifest: Mapping[str, Any]) -> str:
    """The file asked for scores, and testing itself, in each language."""
    words = (
        "<p>Hand over the pixels as they are, and let the file test itself where it runs: it holds a few pictures and "
        "what it answered to them when it was made. The Kotlin and Swift programs were not run here.</p>"
    )
    return words + "\n".join(
        f"<details><summary>{language}</summary><pre>{escape(text)}</pre></details>"
        for language, text in snippets(manifest).items()
    )


def _native(found: Mapping[str, Any]) -> dict[str, str]:
    """What Core ML answered on the Mac where the package was made."""
    if found["remark"]:
        return {"not run": found["remark"]}
    devices, left, latency = found["devices"], found["left"], found["latency"]
    return {
        "agreement with the network": report.percent(found["agreement"]),
        "largest difference of a score from the replay": f"{found['largest_difference']:.4f}",
        "latency on the Mac": f"{latency['median_ms']:.2f} ms, median of {latency['runs']}",
        "operations by chip": "the system does not say"
        if devices is None
        else ", ".join(f"{device} {count}" for device, count in devices.items()),
        "not for the Neural Engine": ", ".join(sorted(set(left))) or "none",
    }


REGION = """\
let side = {share} * CGFloat(min(photo.width, photo.height))
let (width, height) = (side / CGFloat(photo.width), side / CGFloat(photo.height))
request.regionOfInterest = CGRect(x: (1 - width) / 2, y: (1 - height) / 2, width: width, height: height)
request.imageCropAndScaleOption = .scaleFill"""
RESULTS = {
    "classLabel": """\
let best = (request.results as? [VNClassificationObservation])?.first
print(best?.identifier ?? "nothing", best?.confidence ?? 0)""",
    "vector": """\
let found = (request.results as? [VNCoreMLFeatureValueObservation])?.first?.featureValue.multiArrayValue
print(found ?? "nothing")""",
}
SWIFT = """\
import CoreML
import Vision

// photo: a CGImage; url: of {file}, which Xcode makes of the package
let request = VNCoreMLRequest(model: try VNCoreMLModel(for: MLModel(contentsOf: url)))
{region}
try VNImageRequestHandler(cgImage: photo).perform([request])
{result}"""
