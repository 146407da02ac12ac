"""What the demo cannot make after its training costs none of the rest."""

from __future__ import annotations

import pytest
import typer

from threedgp.errors import DataError
from threedgp_cli.demo import Steps


def test_a_result_that_cannot_be_made_is_said_and_the_others_follow(capsys):
    called = []

    def app(args, **_):
        called.append(args)
        if args[0] == "mesh":
            raise DataError("No surface.")
        return 1 if args[0] == "scores" else 0

    step = Steps(app)
    for name in ("mesh", "scores", "video"):
        step.optional(name)
    assert called == [["mesh"], ["scores"], ["video"]]
    assert "No surface." in capsys.readouterr().err
    with pytest.raises(DataError, match="No surface"):
        step("mesh")
    with pytest.raises(typer.Exit):
        step("scores")
