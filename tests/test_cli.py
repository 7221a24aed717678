"""What the `pathnet` command does with an error: a sentence for the user's, a traceback for a programmer's."""

from __future__ import annotations

import pytest
import torch

from pathnet import Paths
from pathnet.cli import doctor
from pathnet.cli.main import main


@pytest.fixture
def run(monkeypatch):
    """Run the command with this body in place of the doctor's; its exit status."""

    def run(body) -> int:
        monkeypatch.setattr(doctor, "run", lambda args: body())
        return main(["doctor"])

    return run


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (lambda: Paths(torch.rand(3)), "gates must be integers (Gate values) or a bool mask"),  # TypeError
        (lambda: Paths.delete(3, [7]), "must hold block indices in 0..2"),  # IndexError
        (lambda: Paths(torch.tensor([9])), "gates must"),  # ValueError
        (lambda: open("/there/is/no/such/file"), "No such file or directory"),  # OSError
    ],
)
def test_what_a_check_refuses_is_one_sentence(run, capsys, body, sentence):
    assert run(body) == 2
    error = capsys.readouterr().err
    assert error.startswith("pathnet doctor: ") and sentence in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda: None + 1, TypeError),
        (lambda: [][0], IndexError),
        (lambda: torch.zeros(2) @ torch.zeros(3), RuntimeError),
        (lambda: Paths.delete(None, [0]), TypeError),  # Python's own, inside the package
    ],
)
def test_a_programming_error_keeps_its_traceback(run, body, kind):
    with pytest.raises(kind):
        run(body)


def test_an_interrupt_has_its_own_status(run, capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert run(interrupted) == 130
    assert capsys.readouterr().err.strip() == "pathnet: interrupted"
