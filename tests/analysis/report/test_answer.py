"""The sentences of the report say exactly what the verdicts say."""

from __future__ import annotations

from pathlib import Path

from litpeft.analysis.comparison import Comparison, Difference, Estimate, Figure, Group, Run
from litpeft.analysis.comparison.number_format import MINUS
from litpeft.analysis.report.headline import answer

QUALITY = Figure("val_accuracy", "validation accuracy, %", "higher", "quality")
MEMORY = Figure("peak_rss_bytes", "peak host memory, MiB", "lower", "memory")
RUN = Run(Path("x"), {"seed": 0, "status": "ok"}, {})


def difference(mean: float, verdict: str, pairs: int = 5, needed: int | None = None) -> Difference:
    ends = (mean - abs(mean) / 2, mean + abs(mean) / 2) if pairs > 1 else (None, None)
    return Difference(mean, *ends, pairs, 0.5, 0.5, "paired t over seeds", verdict, needed)


def group(label: str, quality: Difference | None = None, memory: Difference | None = None) -> Group:
    found = {"val_accuracy": quality, "peak_rss_bytes": memory}
    known = {name: one for name, one in found.items() if one}
    return Group(label, {}, [RUN], estimates={"val_accuracy": Estimate(0.9, None, None, 1)}, differences=known)


def answer_for(*groups: Group, **more: object) -> list[str]:
    base = groups[0].label if len(groups) > 1 else None
    return answer(Comparison("t", None, ["adapter"], [QUALITY, MEMORY], list(groups), base, **more))


def test_one_group_gives_no_comparison() -> None:
    assert answer_for(group("lora")) == ["There is only one group, so there is nothing to compare."]


def test_no_significant_difference_is_reported_with_seeds_and_seeds_needed() -> None:
    sentences = answer_for(
        group("full"),
        group("lora", difference(-0.004, "not significant", needed=14)),
        group("dora", difference(0.001, "not significant")),
    )
    assert sentences[0] == "No group differs significantly from full fine-tuning in validation accuracy (5 seeds)."
    assert "about 14 seeds would show a difference of this size" in sentences[1]
    assert f"{MINUS}0.40 points" in sentences[1]
    assert "seeds would" not in sentences[2]


def test_full_fine_tuning_is_named_in_full() -> None:
    sentences = answer_for(group("lora"), group("full", difference(0.02, "better"), difference(1e8, "worse")))
    assert sentences[0] == (
        "Full fine-tuning has higher validation accuracy than lora. Full fine-tuning has higher peak host memory than lora."
    )


def test_significant_differences_in_quality_and_costs() -> None:
    sentences = answer_for(
        group("full"),
        group("lora", difference(0.02, "better"), difference(-1e8, "better")),
        group("frozen", difference(-0.2, "worse"), difference(1e8, "not significant")),
    )
    assert sentences[0] == (
        "lora has higher validation accuracy than full fine-tuning. frozen has lower validation accuracy than full "
        "fine-tuning. lora has lower peak host memory than full fine-tuning."
    )
    assert sentences[-1].startswith(f"Peak host memory, compared with full fine-tuning: better: lora ({MINUS}95 MiB)")
    assert sentences[-1].endswith("not significant: frozen.")


def test_one_seed_gives_no_verdict() -> None:
    sentences = answer_for(
        group("full"),
        group("lora", difference(0.1, "not enough seeds", pairs=1), difference(5.0, "not enough seeds", pairs=1)),
    )
    assert sentences[0] == "Not enough seeds to compare lora with full fine-tuning in validation accuracy."
    assert "needs two seeds" in sentences[1]
    assert len(sentences) == 2
    assert not any(word in " ".join(sentences) for word in ("better", "worse", "not significant", "higher", "lower"))


def test_confounded_groups_give_no_clear_answer() -> None:
    sentences = answer_for(
        group("full"), group("lora", difference(0.1, "better")), confounded={"lr": {"full": "1", "lora": "2"}}
    )
    assert sentences[0].startswith("No clear answer: the groups differ in more than the axes. lora has higher")
