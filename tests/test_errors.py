"""Errors say what is wrong and offer the nearest names."""

from __future__ import annotations

import pytest

from keras_resnet.errors import (
    ExportError,
    InputError,
    KerasResnetError,
    MissingExtraError,
    UsageError,
    missing_extra,
    nearest,
    unknown,
)


@pytest.mark.parametrize(
    ("value", "best"), [("resnet51", "resnet50"), ("resnet_18", "resnet18"), ("wide_resnet50", "wide_resnet50_2")]
)
def test_the_nearest_name_comes_first(value: str, best: str) -> None:
    names = ["cifar_resnet20", "plain18", "resnet18", "resnet34", "resnet50", "wide_resnet50_2", "wide_resnet101_2"]
    assert nearest(value, names)[0] == best


def test_a_name_like_no_other_is_offered_something_all_the_same() -> None:
    assert nearest("zzz", [f"name{i}" for i in range(20)])


def test_an_unknown_name_is_named_with_its_origin_and_where_all_names_are() -> None:
    text = str(unknown("variant", "b", ["a1", "a2", "a3", "b1"], where="--variant", show_all="`list`"))
    assert text == "unknown variant 'b' (--variant): nearest are b1; `list` shows all"


def test_few_names_are_all_said() -> None:
    assert str(unknown("block", "x", ("basic", "bottleneck"))) == "unknown block 'x': valid are basic, bottleneck"


def test_a_missing_extra_names_its_pip_command() -> None:
    error = missing_extra("drawing", "viz", ImportError("no", name="matplotlib"))
    assert isinstance(error, MissingExtraError)
    assert 'pip install "keras-resnet-edge[viz]"' in str(error)
    assert "matplotlib" in str(error)


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError, 2), (InputError, 1), (ExportError, 1), (MissingExtraError, 1)]
)
def test_every_error_carries_its_exit_code(error: type[KerasResnetError], code: int) -> None:
    assert error.exit_code == code
