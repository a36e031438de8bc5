"""The one family of errors: each says which value is wrong, where it came from, the nearest valid ones, what to do.

Every class carries the exit code that the command line ends with. Nothing here imports anything of ours.
"""

import difflib
from collections.abc import Iterable


class KerasResnetError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(KerasResnetError, ValueError):
    """An argument or option has a value that cannot be right, whatever the files hold."""

    exit_code = 2


class InputError(KerasResnetError, ValueError):
    """A file, folder or data set is not what it should be."""


class MissingExtraError(KerasResnetError, ImportError):
    """A part was touched whose optional packages are not installed."""


class ExportError(KerasResnetError, RuntimeError):
    """An export failed, or its file does not answer as the model does."""


def nearest(value: object, valid: Iterable[object], count: int = 3) -> list[str]:
    """The valid names that look most like `value`, best first; all of them where they are few or none is near."""
    names = [str(name) for name in valid]
    if len(names) <= count:
        return names
    begun = [name for name in names if value and name.startswith(str(value))]
    close = difflib.get_close_matches(str(value), names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*begun, *close]))[:count] or sorted(names)[: 2 * count]


def unknown(what: str, value: object, valid: Iterable[object], *, where: str = "", show_all: str = "") -> UsageError:
    """The error for a name that is not in a table.

    what: the noun ("variant"); where: the argument or option it came from; show_all: how to see every valid name.
    """
    origin = f" ({where})" if where else ""
    names = list(valid)
    offered = nearest(value, names)
    word = "valid are" if len(offered) == len(names) else "nearest are"
    rest = f"; {show_all} shows all" if show_all and len(offered) < len(names) else ""
    return UsageError(f"unknown {what} {value!r}{origin}: {word} {', '.join(offered)}{rest}")


def missing_extra(part: str, extra: str, error: ImportError) -> MissingExtraError:
    """The error for a part whose optional package is absent; `error` is the ImportError that was caught."""
    return MissingExtraError(
        f"{part} needs a package that is not installed ({error.name or error}): "
        f'pip install "keras-resnet-edge[{extra}]"'
    )
