"""Starting several processes on one machine."""

import pytest

from flowward.system import distributed


@pytest.mark.parametrize("many", [257, 10**30])
def test_more_processes_than_a_machine_can_run_are_refused_before_one_starts(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match="at most 256 processes"):
        distributed.launch(many, ["train"])
