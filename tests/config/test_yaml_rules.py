"""YAML 1.2's core rules, lines, bounds, and text that reads back as what was written."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.config.load import dump_config, load_config, read_config
from dist_trainer.config.schema import Config
from dist_trainer.config.yaml_rules import MAX_DEPTH, read_yaml, write_yaml
from dist_trainer.errors import ConfigError


def value_of(text: str) -> Any:
    tree, problems = read_yaml(text, "x.yaml")
    assert not problems
    assert tree is not None
    return tree.plain()


def problem_of(text: str) -> str:
    _, problems = read_yaml(text, "x.yaml")
    assert len(problems) == 1
    return f"{problems[0].where}: {problems[0].message}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e3", 1000.0),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("+12", 12),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0xFf", 255),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("24:00:00", "24:00:00"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("tRUE", "tRUE"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("=", "="),
        ("'12'", "12"),
        ('"true"', "true"),
        ("!!str 12", "12"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ("!!float 12", 12.0),
        ("[1, two, null]", [1, "two", None]),
    ],
)
def test_values_follow_the_core_rules_of_yaml_1_2(text: str, value: Any) -> None:
    found = value_of(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read() -> None:
    assert math.isnan(value_of("key: .nan")["key"])


def test_a_file_may_start_with_a_byte_order_mark_and_hold_comments(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# nothing else\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match="name is missing"):
        load_config([path])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "x.yaml:3: is given twice, first at x.yaml:1"),
        ("a: !!int x", "x.yaml:1: cannot be read as int: 'x'"),
        ("a: !!binary aGk=", "x.yaml:1: has the unknown tag !!binary; only plain YAML values are accepted"),
        ("a: !!set {b}", "x.yaml:1: has the unknown tag !!set; only plain YAML values are accepted"),
        ("a: !mine 3", "x.yaml:1: has the unknown tag !mine; only plain YAML values are accepted"),
        ("true: 3", "x.yaml:1: is not a key; keys are text, in quotes where YAML reads something else"),
        ('a: "x\\ud83d"', "x.yaml:1: holds half of a character: 'x\\ud83d'"),
        (f"a: {'9' * 5000}", f"x.yaml:1: cannot be read as int: '{'9' * 40}'"),
    ],
)
def test_what_cannot_be_meant_is_a_problem_with_its_line(text: str, problem: str) -> None:
    assert problem_of(text) == problem


def test_nesting_stops_at_a_bound() -> None:
    value_of("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert f"nested deeper than {MAX_DEPTH} levels" in problem_of("[" * 5000 + "]" * 5000)
    assert f"nested deeper than {MAX_DEPTH} levels" in problem_of("a: &a [*a]")


def test_aliases_stop_at_a_bound() -> None:
    assert value_of("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}
    many = "a: &a 1\nb: [" + ", ".join(["*a"] * 101) + "]"
    assert "more than 100 aliases" in problem_of(many)


def test_few_aliases_that_multiply_stop_at_a_bound() -> None:
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "more than 100000 values" in problem_of("\n".join(lines))


def test_a_file_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="is larger than 1 MB"):
        load_config([path])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["on", "yes", "24:00:00", "3e-4", "null", "~", "0o17", "<<", "=", "1_000", "2024-01-01"]
    )
    | st.sampled_from([" x", "\x85", "a\u2028b", "a\r\nb\n", "\ufeffx"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abn1.-: ", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(values)
def test_written_values_read_back_equal_and_of_the_same_type(value: Any) -> None:
    found = value_of(write_yaml(value))
    assert found == value
    assert repr(found) == repr(value)


keys = st.from_regex(r"[a-z]{1,8}_x", fullmatch=True)  # no knob of the toolkit ends so


@settings(deadline=None)
@given(
    arguments=st.dictionaries(keys, values, max_size=4),
    rate=st.floats(min_value=1e-12, max_value=10),
    seed=st.integers(0, 2**63 - 1),
    steps=st.none() | st.integers(1, 10**9),
    freeze=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=2),
)
def test_a_dumped_configuration_loads_as_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory,
    arguments: dict[str, Any],
    rate: float,
    seed: int,
    steps: int | None,
    freeze: list[str],
) -> None:
    config = Config.model_validate(
        {
            "name": "run",
            "seed": seed,
            "model": {"target": "my.Net", **arguments},
            "data": {"train": {"target": "my.Data", **arguments}},
            "loss": {"target": "my.loss"},
            "optimizer": {"target": "torch.optim.SGD", "lr": rate},
            "train": {"steps": steps, "freeze": freeze, "profile": None},
        }
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    again = read_config(path)
    assert again == config
    assert dump_config(again) == dump_config(config)
