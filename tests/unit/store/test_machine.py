"""The description of the machine in a run's record."""

from __future__ import annotations

import json

from harness.store.machine import differences, hardware, parse_cpuinfo


def test_the_cpu_is_named_by_its_model() -> None:
    text = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: other\n"
    assert parse_cpuinfo(text) == "AMD EPYC 7B13"
    assert parse_cpuinfo("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n") == "Arm 0x41 0xd0c"
    assert parse_cpuinfo("") is None


def test_this_machine_is_described_in_json_values_without_its_name() -> None:
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert {"cpu", "instructions", "torch_threads", "machine"} <= set(found)


def test_differences_are_named_for_values_that_both_records_have() -> None:
    one = {"cpu": "A", "torch_threads": 1, "gpu": None}
    two = {"cpu": "B", "torch_threads": 2, "gpu": "H100"}
    assert differences(one, two) == ["CPU A and B", "threads 1 and 2"]
    assert differences({}, two) == []
