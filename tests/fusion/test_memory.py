import pytest
import torch

from lit_insert.fusion.memory import Lazy, PeakMemory


def test_models_come_when_asked_for_and_go():
    made = []

    def load():
        made.append(torch.nn.Linear(2, 2))
        return made[-1]

    part, cpu = Lazy(load), torch.device("cpu")
    assert made == []
    assert part(cpu) is part(cpu) is made[0]
    part.free()
    assert part.value is None
    assert part(cpu) is made[1]
    part.keep = True
    part.free()
    assert part(cpu) is made[1]
    given = Lazy(None, made[0])
    given.free()
    assert given(cpu) is made[0], "what did not come by name stays"


def test_stages_are_measured_even_if_they_fail():
    memory = PeakMemory(torch.device("cpu"))
    with memory.stage("one"):
        pass
    with pytest.raises(ValueError, match="broken"), memory.stage("two"):
        raise ValueError("broken")
    assert list(memory.stages) == ["one", "two"]
    assert memory.stages["two"]["process_mb"] >= memory.stages["one"]["process_mb"] > 50
