"""The answer says what the verdicts say, and no more."""

from __future__ import annotations

from pathlib import Path

from litpeft.analysis.comparison import Comparison, Difference, Estimate, Figure, Group, Run
from litpeft.analysis.comparison.number_format import MINUS
from litpeft.analysis.report.headline import answer

QUALITY = Figure("val_accuracy", "val accuracy, %", "higher", "quality")
MEMORY = Figure("peak_rss_bytes", "peak of host, MiB", "lower", "memory")
RUN = Run(Path("x"), {"seed": 0, "status": "ok"}, {})


def difference(mean: float, verdict: str, pairs: int = 5, needed: int | None = None) -> Difference:
    ends = (mean - abs(mean) / 2, mean + abs(mean) / 2) if pairs > 1 else (None, None)
    return Difference(mean, *ends, pairs, 0.5, 0.5, "paired t over seeds", verdict, needed)


def group(label: str, quality: Difference | None = None, memory: Difference | None = None) -> Group:
    found = {"val_accuracy": quality, "peak_rss_bytes": memory}
    known = {name: one for name, one in found.items() if one}
    return Group(label, {}, [RUN], estimates={"val_accuracy": Estimate(0.9, None, None, 1)}, differences=known)


def of(*groups: Group, **more: object) -> list[str]:
    base = groups[0].label if len(groups) > 1 else None
    return answer(Comparison("t", None, ["adapter"], [QUALITY, MEMORY], list(groups), base, **more))


def test_one_group_is_held_against_nothing() -> None:
    assert of(group("lora")) == [
        "There is one group alone, so nothing is held against anything: the figures stand for themselves."
    ]


def test_all_within_noise_is_said_with_the_seeds_it_took_and_would_take() -> None:
    told = of(
        group("none"),
        group("lora", difference(-0.004, "within noise", needed=14)),
        group("dora", difference(0.001, "within noise")),
    )
    assert told[0] == "In val accuracy, all others are within noise of none with 5 seeds."
    assert "about 14 seeds would show a difference of this size" in told[1]
    assert f"{MINUS}0.40 points" in told[1]
    assert "seeds would" not in told[2]


def test_better_and_worse_and_what_they_cost() -> None:
    told = of(
        group("none"),
        group("lora", difference(0.02, "better"), difference(-1e8, "better")),
        group("frozen", difference(-0.2, "worse"), difference(1e8, "within noise")),
    )
    assert told[0] == (
        "In val accuracy, lora is better than none; frozen is worse than none. Better in cost: lora in peak of host."
    )
    assert told[-1].startswith(f"In peak of host, against none: better: lora ({MINUS}95 MiB)")
    assert told[-1].endswith("within noise: frozen.")


def test_one_seed_tells_nothing() -> None:
    told = of(
        group("none"), group("lora", difference(0.1, "cannot tell", pairs=1), difference(5.0, "cannot tell", pairs=1))
    )
    assert told[0] == "In val accuracy, nothing can be told of lora."
    assert "needs two seeds" in told[1]
    assert len(told) == 2
    assert not any(word in " ".join(told) for word in ("better", "worse", "within noise"))


def test_confounded_groups_give_no_clean_answer() -> None:
    told = of(group("none"), group("lora", difference(0.1, "better")), confounded={"lr": {"none": "1", "lora": "2"}})
    assert told[0].startswith("No clean answer, for the groups differ in more than the named axes.")
