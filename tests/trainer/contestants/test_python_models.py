"""Classes that the command line names: the three protocols, and everything that may be wrong with one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rainspark.data.errors import ConfigError
from rainspark.trainer.contestants.contestant import Asked
from rainspark.trainer.contestants.entries import Entry
from rainspark.trainer.contestants.python_models import PythonModel, load_python_model
from rainspark.trainer.contestants.windows import WindowRain

SOURCE = """
import torch

class Field:
    name, frames_in, marks_unknown = "field", 2, True
    def forecast(self, rain_mmh_bthw, valid_bthw, frames_out):
        assert rain_mmh_bthw.shape[1] == 2
        return rain_mmh_bthw[:, -1:].repeat(1, frames_out, 1, 1)

class Members:
    name, frames_in, members = "members", 1, 3
    def forecast_members(self, rain_mmh_bthw, valid_bthw, frames_out, *, issue_s_b):
        assert issue_s_b == [600]
        return rain_mmh_bthw[:, -1:, None].repeat(1, 3, frames_out, 1, 1)

class Probabilities:
    name, frames_in = "probabilities", 1
    def forecast_probabilities(self, rain_mmh_bthw, valid_bthw, frames_out, thresholds_mmh):
        return torch.stack([(rain_mmh_bthw[:, -1:] > t).float().repeat(1, frames_out, 1, 1) for t in thresholds_mmh], 1)

class Both(Members):
    def forecast(self, rain_mmh_bthw, valid_bthw, frames_out):
        raise AssertionError

class TooMany(Members):
    members = 4

class Numpy(Field):
    def forecast(self, rain_mmh_bthw, valid_bthw, frames_out):
        return rain_mmh_bthw.numpy()

class Raises(Field):
    def forecast(self, rain_mmh_bthw, valid_bthw, frames_out):
        raise KeyError("weights")

class Nothing:
    frames_in = 1

class NoFrames:
    def forecast(self): ...

class NoMembers(Members):
    members = None

class Needy(Field):
    def __init__(self, folder): ...
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange_models.py").write_text(SOURCE)
    (tmp_path / "broken_models.py").write_text("import no_such_library_anywhere")
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("strange_models", "broken_models"):
        sys.modules.pop(name, None)


def loaded(name: str, module: str = "strange_models") -> PythonModel:
    return load_python_model(Entry(name="mine", kind="python", python=f"{module}:{name}"))


def asked(name: str) -> np.ndarray:
    model = loaded(name)
    contestant = Asked(
        name="mine",
        forecaster=model.forecaster,
        gives=model.gives,
        device=torch.device("cpu"),
        frames_out=4,
        thresholds_mmh=(0.5, 2.0),
        source=model.source,
    )
    rain = torch.arange(3 * 5 * 6).view(1, 3, 5, 6).float() / 30
    window = WindowRain(
        row=0,
        past_mmh_bthw=rain,
        past_valid_bthw=None,
        future_mmh_bthw=rain.repeat(1, 2, 1, 1)[:, :4],
        future_valid_bthw=None,
    )
    assert contestant.marks_unknown is isinstance(model.forecaster, type(loaded("Field").forecaster))
    return contestant.start(window, 600)()


def test_each_protocol_is_recognised_and_asked() -> None:
    last = (torch.arange(60, 90).view(5, 6) / 30).numpy()
    assert loaded("Field").gives == "field"
    np.testing.assert_array_equal(asked("Field"), np.stack([last] * 4))
    assert [loaded(name).gives for name in ("Members", "Both")] == ["members"] * 2
    np.testing.assert_array_equal(asked("Members"), np.broadcast_to(last, (3, 4, 5, 6)))
    assert loaded("Probabilities").gives == "probabilities"
    shares = asked("Probabilities")
    np.testing.assert_array_equal(shares[:, 0], [last > 0.5, last > 2.0])


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("no_such_module", "Field", r"mine: no_such_module:Field: the module no_such_module cannot be imported \(Modu"),
        ("broken_models", "Field", r"broken_models cannot be imported \(ModuleNotFoundError: .*no_such_library"),
        ("strange_models", "Fields", "strange_models has no Fields; the nearest name is Field"),
        ("strange_models", "Nothing", "has none of the methods forecast_members, forecast_probabilities, forecast;"),
        ("strange_models", "NoFrames", "its attribute frames_in is missing; expected a whole number, 1 or more"),
        ("strange_models", "NoMembers", "its attribute members is missing; expected a whole number"),
        ("strange_models", "Needy", r"Needy\(\) failed \(TypeError: .*folder.*expected a class that needs no arg"),
    ],
)
def test_classes_that_cannot_take_part(module: str, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        loaded(name, module)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "TooMany",
            r"strange_models:TooMany gave \(1, 3, 4, 5, 6\); expected .* \(1, 4, 4, 5, 6\), \(1, members,",
        ),
        ("Numpy", r"gave ndarray; expected a torch.Tensor of shape \(1, 4, 5, 6\), \(1, lead times, rows, cols\)"),
        ("Raises", r"failed on the window issued at 1970-01-01T00:10Z \(KeyError: 'weights'\)"),
    ],
)
def test_what_a_class_does_wrong_is_said_of_it(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        asked(name)
