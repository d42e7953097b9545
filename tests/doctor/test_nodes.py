"""What several nodes found, side by side: tests/cluster/test_doctor.py asks real ones."""

from dist_trainer.doctor.findings import Finding
from dist_trainer.doctor.nodes import compare_versions, fold


def test_nodes_that_say_the_same_share_a_line_and_the_odd_one_has_its_own() -> None:
    findings = [
        Finding("python", "fine", "3.11.7", nodes=("n1",)),
        Finding("gloo on lo", "fine", measured={"latency_us": 60.0}, nodes=("n1",)),
        Finding("python", "fine", "3.11.7", nodes=("n2",)),
        Finding("gloo on lo", "fine", measured={"latency_us": 90.0}, nodes=("n2",)),
        Finding("python", "broken", "3.9.1", "another one", nodes=("n3",)),
        Finding("nodes", "fine", "all reported"),
    ]
    assert [(each.name, each.state, each.found, each.nodes) for each in fold(findings)] == [
        ("python", "fine", "3.11.7", ("n1", "n2")),
        ("python", "broken", "3.9.1", ("n3",)),
        ("gloo on lo", "fine", "60 to 90 us", ("n1", "n2")),
        ("nodes", "fine", "all reported", ()),
    ]


def test_many_nodes_are_not_all_named() -> None:
    findings = [Finding("python", "fine", "3.11.7", nodes=(f"n{number}",)) for number in range(100)]
    assert fold(findings)[0].nodes == ("all nodes",)
    odd = Finding("python", "broken", "3.9.1", nodes=("n100",))
    assert [each.nodes for each in fold([*findings, odd])] == [("n0", "n1", "n2", "97 more"), ("n100",)]


def test_versions_that_the_ranks_would_refuse_are_broken_and_others_a_warning() -> None:
    alike = {"python": "3.11.7", "torch": "2.14.1", "rich": "14.1"}
    assert [each.state for each in compare_versions({"n1": alike, "n2": dict(alike)})] == ["fine"]
    other = {**alike, "torch": "2.14.0"}
    del other["rich"]
    rich, torch = compare_versions({"n1": alike, "n2": other})
    assert (rich.state, rich.found) == ("warning", "rich: 14.1 on n1, none on n2")
    assert (torch.state, torch.found) == ("broken", "torch: 2.14.1 on n1, 2.14.0 on n2")
