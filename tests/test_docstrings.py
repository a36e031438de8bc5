"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

import keras_resnet

ROOMS = ("models", "profiling", "rematerialisation")


@pytest.mark.parametrize("room", ROOMS)
def test_examples_in_docstrings_hold(room: str) -> None:
    module = importlib.import_module(f"keras_resnet.{room}")
    names = {"build": keras_resnet.build, "profile": keras_resnet.profile}
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted > 0
    assert found.failed == 0
