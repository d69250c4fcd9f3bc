import errno
import inspect
import pickle

import pytest

from strongroom import errors
from strongroom.errors import Malformed, StrongroomError, os_errors, printable

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, StrongroomError)
]
CODES = {
    "UsageError": 2,
    "FormatError": 3,
    "AccessError": 4,
    "IntegrityError": 5,
    "EvidenceError": 6,
    "Unavailable": 7,
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_exit_code_is_that_of_its_branch(cls):
    branch = next((base.__name__ for base in cls.__mro__ if base.__name__ in CODES), None)
    assert cls.exit_code == (70 if cls is StrongroomError else CODES[branch])
    assert cls.__doc__
    assert cls.__name__ in errors.__all__
    assert cls.__name__ in errors.__doc__, "the tree in the docstring"


def test_also_what_the_standard_library_calls_them():
    assert issubclass(errors.NotFound, FileNotFoundError)
    assert issubclass(errors.AlreadyExists, FileExistsError)
    assert issubclass(errors.MissingExtra, ImportError)
    assert issubclass(errors.StorageError, OSError)


@pytest.mark.parametrize("cls", [errors.NotFound, errors.StorageError, errors.UsageError])
def test_text(cls):
    error = cls("Something is wrong.", hint="Do something.")
    assert str(error) == error.message == "Something is wrong."
    assert error.hint == "Do something."


def test_missing_extra():
    error = errors.MissingExtra("Loading ONNX models", "onnx")
    assert error.hint == 'pip install "strongroom[onnx]"'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain größe 重み", "plain größe 重み"),
        ("a\nb\t\x1b[31m\x07", r"a\nb\t\x1b[31m\x07"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff", r"\udcff"),
        ("\x9b2J", r"\x9b2J"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert str(StrongroomError(text)) == shown
    assert StrongroomError("x", hint=text).hint == shown


def test_within():
    error = Malformed("segment", "is not a power of two")
    error.within("a/b")
    error.within("a/b")
    assert str(error) == "a/b: Malformed sealed file: segment is not a power of two."


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOENT, errors.NotFound),
        (errno.EEXIST, errors.AlreadyExists),
        (errno.EACCES, errors.UsageError),
        (errno.EPERM, errors.UsageError),
        (errno.EISDIR, errors.UsageError),
        (errno.ENOTDIR, errors.UsageError),
        (errno.ELOOP, errors.UsageError),
        (errno.ENAMETOOLONG, errors.UsageError),
        (errno.ENXIO, errors.UsageError),
        (errno.EROFS, errors.UsageError),
        (errno.EIO, errors.StorageError),
        (errno.ENOSPC, errors.StorageError),
        (errno.EPIPE, errors.StorageError),
    ],
)
def test_os_errors(number, cls):
    with pytest.raises(cls) as caught, os_errors("place"):
        raise OSError(number, "text of the system")
    assert type(caught.value) is cls
    assert "place" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert (caught.value.hint is not None) == (number == errno.ENOSPC)


def test_what_is_lacking_is_named(tmp_path):
    for place, hint in (
        (tmp_path / "none" / "x", f"There is no directory {tmp_path / 'none'}."),
        (tmp_path / "x", None),
        ("x", None),
        ("https://none.example/x", None),
    ):
        with pytest.raises(errors.NotFound) as caught, os_errors(place):
            raise FileNotFoundError(errno.ENOENT, "text")
        assert caught.value.hint == hint


def test_os_errors_without_number():
    with pytest.raises(errors.StorageError, match=r"x: short\."), os_errors("x"):
        raise OSError("short")


def test_os_errors_leaves_others_alone():
    with pytest.raises(Malformed), os_errors("x"):
        raise Malformed("a", "b")
    with pytest.raises(ValueError, match="c"), os_errors("x"):
        raise ValueError("c")


ARGUMENTS = {
    "InvalidPolicy": ("any[0]", "is empty"),
    "Malformed": ("segment", "is not a power of two"),
    "MissingExtra": ("Reading", "remote"),
    "PayloadTampered": ("a/b", 3),
    "ManifestMismatch": ("a/b", "is missing"),
}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_survives_the_way_to_another_process(cls):
    """As a worker of a data loader does; one that cannot be unpickled hangs a pool."""
    options = {"code": "policy"} if cls.__name__ == "ReleaseDenied" else {}
    error = cls(*ARGUMENTS.get(cls.__name__, ("Wrong.",)), **options)
    error.hint = "Right."
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
