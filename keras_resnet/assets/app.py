# pip install ai-edge-litert numpy
import base64
import io
import json
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter

content = open("MODEL_FILE", "rb").read()
interpreter = Interpreter(model_content=content)
interpreter.allocate_tensors()
image, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
inside = zipfile.ZipFile(io.BytesIO(content))  # labels, manifest and test stand behind the model
labels = inside.read("labels.txt").decode().splitlines()


def scores(pixels):
    """One score a class of RGB pixels as they are, uint8 [HEIGHT, WIDTH, 3]."""
    interpreter.set_tensor(image["index"], pixels[None].astype(image["dtype"]))
    interpreter.invoke()
    raw, (scale, zero_point) = interpreter.get_tensor(output["index"])[0], output["quantization"]
    return (raw.astype(np.float32) - zero_point) * scale if scale else raw


def self_test():
    """How many of the pictures inside the file are answered here as they were when it was made."""
    test = json.loads(inside.read("golden.json"))
    agreeing, factor, start = 0, test["factor"], time.perf_counter()
    for picture in test["pictures"]:
        bytes_ = np.frombuffer(base64.b64decode(picture["pixels"]), np.uint8)
        small = bytes_.reshape(test["height"], test["width"], 3)
        answer = scores(small.repeat(factor, axis=0).repeat(factor, axis=1))
        difference = np.abs(answer[picture["classes"]] - picture["scores"]).max()
        agreeing += int(answer.argmax() == picture["classes"][0] and difference <= test["tolerance"])
    count = len(test["pictures"])
    milliseconds = 1000 * (time.perf_counter() - start) / count
    return f"this machine: {agreeing} of {count} agree, {milliseconds:.1f} ms"


print(self_test())
