"""lm-eval tasks on the live model: requests, scores and errors, compared with lm-eval itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from litpeft.adapters import DoRA, QLoRA
from litpeft.benchmarks import Options, Result, Suite, harness
from litpeft.benchmarks.harness import TASKS, HarnessGroup, find
from litpeft.data import TextClassification
from litpeft.data.arithmetic import held_out
from litpeft.errors import UserError
from litpeft.tasks import SequenceClassification
from tests.benchmarks.build import causal, evaluate

lm_eval = pytest.importorskip("lm_eval")
STOCK = Path(lm_eval.__file__).parent / "tasks"
FOLDERS = [str(STOCK / name) for name in ("truthfulqa", "arithmetic", "blimp", "mmlu/default")]


def stock(names: list[str], overrides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return lm-eval's own tasks, which read local files instead of the hub: members of an inline group take overrides."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False, include_path=FOLDERS)
    return manager.load({"group": "g", "task": [{"task": name} | overrides[name] for name in names]})["tasks"]


@pytest.fixture(scope="session")
def stock_files(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return overrides that make six lm-eval tasks read the files in ../shared/data."""
    folder = tmp_path_factory.mktemp("stock")
    data = shared / "data"

    def js(**files: str) -> dict[str, Any]:
        return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}

    questions = [
        {"question": row["question"]}
        | {k: {"choices": list(row[k]), "labels": list(row[k].values())} for k in ("mc1_targets", "mc2_targets")}
        for row in json.loads((data / "truthfulqa" / "mc_task.json").read_text())
    ]
    (folder / "tq.json").write_text(json.dumps(questions))
    import csv

    for split in ("dev", "test"):
        with open(data / "mmlu" / f"global_facts_{split}.csv", newline="") as file:
            rows = [
                {"question": r[0], "subject": "global_facts", "choices": r[1:5], "answer": "ABCD".index(r[5])}
                for r in csv.reader(file)
            ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    truth = js(validation=str(folder / "tq.json"))
    return {
        "truthfulqa_mc1": truth,
        "truthfulqa_mc2": truth,
        "arithmetic_2ds": js(validation=str(data / "arithmetic" / "two_digit_subtraction.jsonl")),
        "arithmetic_4da": js(validation=str(data / "arithmetic" / "four_digit_addition.jsonl")),
        "blimp_causative": js(train=str(data / "blimp" / "causative.jsonl")),
        "mmlu_global_facts": js(test=str(folder / "test.jsonl"), dev=str(folder / "dev.jsonl")),
    }


@pytest.mark.parametrize("shots", [None, 5])
def test_our_tasks_make_the_same_requests_as_lm_evals(
    shared: Path, stock_files: dict[str, Any], shots: int | None
) -> None:
    """Compare prompts, few-shot examples and answers exactly, in order."""
    names = list(stock_files)
    stock_tasks = stock(names, stock_files)
    ours, _ = find([f"litpeft_{name}" for name in names], Options(data_dir=str(shared / "data"), num_fewshot=shots))
    assert [task.name for task in ours] == [f"litpeft_{name}" for name in names]
    for name, our in zip(names, ours, strict=True):
        other = stock_tasks[name]
        if other.get_config("num_fewshot") is None or (shots is not None and "mmlu" in name):
            other.set_config("num_fewshot", shots if "mmlu" in name and shots else 0)
        other.set_fewshot_seed(1234)
        for task in (our.task, other):
            task.build_all_requests(limit=30)
        requests, expected = ([instance.args for instance in task.instances] for task in (our.task, other))
        assert requests == expected
        assert len(requests) >= 30
        assert our.task.OUTPUT_TYPE == other.OUTPUT_TYPE


def test_all_blimp_sets_and_all_mmlu_subjects_have_a_task() -> None:
    blimp = [yaml.safe_load(p.read_text()) for p in (STOCK / "blimp").glob("*.yaml") if p.name != "_blimp.yaml"]
    mmlu = [yaml.safe_load(p.read_text()) for p in (STOCK / "mmlu" / "default").glob("mmlu_*.yaml")]
    for folder, key, expected in (("blimp", "name", blimp), ("mmlu", "subject", mmlu)):
        found = {
            config["task"]: config["dataset_kwargs"][key]
            for path in (TASKS / folder).glob("*.yaml")
            if "group" not in (config := yaml.safe_load(path.read_text().replace("!function", "")))
            and "include" in config
        }
        assert found == {f"litpeft_{config['task']}": config["dataset_name"] for config in expected}
        group = yaml.safe_load((TASKS / folder / f"{folder}.yaml").read_text())
        assert sorted(group["task"]) == sorted(found)


@pytest.mark.parametrize(
    ("adapter", "dtype", "tolerance"),
    [(None, "fp32", 1e-4), (DoRA(rank=2), "fp32", 1e-4), (QLoRA(rank=2), "fp32", 1e-4), (None, "bf16", 0.5)],
    ids=["lora", "dora", "qlora", "bf16"],
)
def test_log_likelihoods_and_scores_equal_those_of_lm_eval(
    byte_llama: str, shared: Path, stock_files: dict[str, Any], adapter: Any, dtype: str, tolerance: float
) -> None:
    """Compare each item of the model with its adapter with lm-eval's HFLM. In bf16 the two round differently."""
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM

    task, data = causal(byte_llama, adapter, dtype)
    found = evaluate(task, data, *(f"litpeft_{name}" for name in stock_files), shared=shared, limit=6)
    assert not found.skipped
    tasks = stock(list(stock_files), stock_files)
    for each in tasks.values():
        each.set_config("num_fewshot", 0)
        each.set_fewshot_seed(1234)
    task.backbone.eval()
    lm = HFLM(pretrained=task.backbone, tokenizer=data.tokenizer, batch_size=4)
    expected = harness_evaluate(lm, {"tasks": tasks}, limit=6, bootstrap_iters=10)
    ours, _ = find([f"litpeft_{name}" for name in stock_files], Options(data_dir=str(shared / "data")))
    for name in stock_files:
        result, other = found.results[f"litpeft_{name}"], expected["results"][name]
        if dtype == "fp32":
            assert result.scores["acc"] == pytest.approx(other["acc,none"], abs=1e-5)
            assert result.standard_errors["acc"] == pytest.approx(other["acc_stderr,none"], abs=1e-5)
            assert result.per_item["acc"] == pytest.approx(
                [each["acc"] for each in expected["samples"][name]], abs=1e-5
            )
        assert result.items == 6
    # now the log-likelihoods
    from litpeft.benchmarks.base import Live

    live = Live(task, data, Options(), lambda *_: None)
    model = harness._live_model(live)
    for our in ours:
        our.task.build_all_requests(limit=6)
        requests = our.task.instances
        with torch.no_grad():
            pairs = zip(model.loglikelihood(requests), lm.loglikelihood(requests), strict=True)
        for (log, greedy), (other, other_greedy) in pairs:
            assert log == pytest.approx(other, abs=tolerance * (1 if dtype == "fp32" else max(1, abs(other) / 20)))
            assert dtype == "bf16" or greedy == other_greedy
    assert live.memory["scorer"] is not None  # shared prefixes were computed once
    assert live.memory["scores"]


def test_truthfulqa_is_scored_by_its_published_definition(byte_llama: str, shared: Path) -> None:
    """MC1: the most likely answer is true. MC2: the share of the true answers in the total probability (Lin et al.
    2022, section 3.3). Both are computed here from the file, the prompt and the model."""
    task, data = causal(byte_llama)
    found = evaluate(task, data, "litpeft_truthfulqa_mc1", "litpeft_truthfulqa_mc2", shared=shared, limit=6)
    model, tokenizer = task.backbone.eval(), data.tokenizer
    prompt = yaml.safe_load((TASKS / "truthfulqa" / "mc1.yaml").read_text().replace("!function", ""))["doc_to_text"]

    def log_likelihood(question: str, answer: str) -> float:
        begin = tokenizer(prompt.replace("{{question}}", question))["input_ids"]
        ids = torch.tensor([begin + tokenizer(f" {answer}")["input_ids"]])
        with torch.no_grad():
            logs = model(ids).logits[0].double().log_softmax(-1)
        return sum(float(logs[place - 1, ids[0, place]]) for place in range(len(begin), ids.shape[1]))

    first, second = [], []
    for row in json.loads((shared / "data" / "truthfulqa" / "mc_task.json").read_text())[:6]:
        logs = {answer: log_likelihood(row["question"], answer) for answer in row["mc1_targets"]}
        first.append(float(row["mc1_targets"][max(logs, key=logs.__getitem__)] == 1))
        weights = {answer: math.exp(log_likelihood(row["question"], answer)) for answer in row["mc2_targets"]}
        true = sum(weight for answer, weight in weights.items() if row["mc2_targets"][answer] == 1)
        second.append(true / sum(weights.values()) if sum(weights.values()) else math.nan)
    assert found.results["litpeft_truthfulqa_mc1"].per_item["acc"] == first
    known = [place for place, share in enumerate(second) if not math.isnan(share)]
    assert known
    for place in known:
        score = found.results["litpeft_truthfulqa_mc2"].per_item["acc"][place]
        assert score == pytest.approx(second[place], abs=1e-4)


def test_answers_with_probabilities_that_underflow_are_still_weighted() -> None:
    from litpeft.benchmarks.sources import share_of_true

    doc = {"mc2_targets": {"labels": [1, 0]}}
    assert share_of_true(doc, [(-1000.0, False), (-1000.0 + math.log(3), False)])["acc"] == pytest.approx(0.25)


def test_generated_questions_are_right_unique_and_not_in_the_training_data() -> None:
    from litpeft.benchmarks.sources import generated

    counts = {}
    for digits in range(1, 6):
        for operation, sign, of in (
            ("addition", "plus", lambda a, b: a + b),
            ("subtraction", "minus", lambda a, b: a - b),
        ):
            rows = generated(digits, operation)["validation"]
            questions = [row["context"] for row in rows]
            assert len(set(questions)) == len(questions)
            for row in rows:
                words = row["context"].split()
                assert row["context"] == f"Question: What is {words[3]} {sign} {words[5]}\nAnswer:"
                a, b = int(words[3]), int(words[5].rstrip("?"))
                assert len(str(a)) == len(str(b)) == digits
                assert row["completion"] == f" {of(a, b)}"
                assert held_out(a, b)
            counts[digits, operation] = len(rows)
            assert generated(digits, operation)["validation"][:3] == rows[:3]
    assert counts[2, "addition"] > 700
    assert {counts[d, o] for d, o in counts if d > 2} == {2000}


def write_task(folder: Path, **task: Any) -> str:
    """Write a user's task YAML with three items; return its path."""
    (folder / "items.jsonl").write_text(
        "\n".join(json.dumps({"q": f"the film {i}", "a": f" was {i}"}) for i in range(3))
    )
    config = {
        **{
            "task": "mine",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "items.jsonl")}},
        },
        **{"test_split": "test", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "target_delimiter": ""},
        **{"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
        **{"output_type": "loglikelihood"},
    }
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config | task))
    return str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: [mine", "ParserError: while parsing"),
        ("task: mine\ndoc_to_text: !function nothing.here", "ImportError: Cannot import module 'nothing'"),
        ("task: mine\nnonsense: 1", "TypeError: .* unexpected keyword argument 'nonsense'"),
    ],
)
def test_mistakes_in_a_users_yaml_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(UserError, match=f"benchmarks.tasks .*mine.yaml cannot be loaded: {message}"):
        find([str(tmp_path / "mine.yaml")], Options())


def test_a_unicode_line_separator_does_not_end_a_row(tmp_path: Path) -> None:
    row = {"sentence_good": "a\u2028b", "sentence_bad": "c"}
    (tmp_path / "causative.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    [task], _ = find(["litpeft_blimp_causative"], Options(data_dir=str(tmp_path)))
    assert list(task.task.eval_docs) == [row]


@pytest.mark.parametrize("letter", ["", "BC", "E"])
def test_an_answer_other_than_a_to_d_is_refused(tmp_path: Path, letter: str) -> None:
    for split, answer in (("dev", "A"), ("test", letter)):
        (tmp_path / f"virology_{split}.csv").write_text(f"which?,one,two,three,four,{answer}\n")
    with pytest.raises(UserError, match="virology_test.csv line 1 must be a question, four answers, and A, B, C or D"):
        find(["litpeft_mmlu_virology"], Options(data_dir=str(tmp_path)))


@pytest.mark.parametrize("columns", ["which?,one,two,three,A", "which?,one,two,three,four,A,A", "A"])
def test_a_question_has_four_answers(tmp_path: Path, columns: str) -> None:
    right = "which?,one,two,three,four,A\n"
    for split, more in (("dev", ""), ("test", f"{columns}\n")):
        (tmp_path / f"virology_{split}.csv").write_text(right + more)
    with pytest.raises(UserError, match="virology_test.csv line 2 must be a question, four answers, and A, B, C or D"):
        find(["litpeft_mmlu_virology"], Options(data_dir=str(tmp_path)))


def test_the_fingerprint_depends_on_the_right_answers(byte_llama: str, tmp_path: Path) -> None:
    """The requests to the model are equal, only the right answers differ."""
    choice = {"output_type": "multiple_choice", "doc_to_choice": [" a", " b"]}
    task, data = causal(byte_llama)
    first, second, third = (
        evaluate(task, data, write_task(tmp_path, **choice, doc_to_target=target)).results["mine"]
        for target in (0, 1, 1)
    )
    assert first.scores["acc"] == 1 - second.scores["acc"]
    assert first.fingerprint != second.fingerprint == third.fingerprint


def test_a_group_averages_the_filter_that_it_names(byte_llama: str, tmp_path: Path) -> None:
    """As mmlu_pro averages `custom-extract`."""
    take = [{"function": "take_first"}]
    for name in ("one", "two"):
        task = {
            "task": name,
            "filter_list": [{"name": filter_name, "filter": take} for filter_name in ("strict", "loose")],
        }
        Path(write_task(tmp_path, **task)).rename(tmp_path / f"{name}.yaml")
    mean = {"metric": "acc", "weight_by_size": False, "filter_list": "strict"}
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [mean]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["both"])
    results = {
        name: Result({"acc.strict": score, "acc.loose": 1.0}, items=3, standard_errors={"acc.strict": 0.1})
        for name, score in (("one", 0.5), ("two", 0.25))
    }
    result = HarnessGroup(loaded["groups"]["both"]).result(results)
    assert result.scores == {"acc.strict": 0.375}
    assert result.standard_errors["acc.strict"] == pytest.approx(0.1 / math.sqrt(2))


def test_each_evaluation_draws_the_same_few_shot_examples(byte_llama: str, tmp_path: Path) -> None:
    task, data = causal(byte_llama)
    suite = Suite(Options([write_task(tmp_path, num_fewshot=1)]), task, data)
    first, second = (suite.evaluate(task, data, lambda *_: None, print).results["mine"] for _ in range(2))
    assert first.num_fewshot == 1
    assert first == second


def test_items_are_not_saved_for_a_score_that_is_not_their_mean(byte_llama: str, tmp_path: Path) -> None:
    """As for the perplexity of lambada: its items are log-likelihoods, and for those, higher is better."""
    metrics = [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ]
    task, data = causal(byte_llama)
    result = evaluate(task, data, write_task(tmp_path, metric_list=metrics)).results["mine"]
    assert set(result.scores) == {"perplexity", "acc"}
    assert result.per_item == {"acc": [0.0] * 3}


def test_a_generation_task_runs_through_lm_eval(byte_llama: str, tmp_path: Path) -> None:
    path = write_task(
        tmp_path,
        output_type="generate_until",
        generation_kwargs={"max_gen_toks": 6, "until": ["never"], "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    task, data = causal(byte_llama)
    model, tokenizer = task.backbone.eval(), data.tokenizer
    ids = tokenizer("the film 1", return_tensors="pt")["input_ids"]
    generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    rows = [
        {"q": "the film 1", "a": tokenizer.decode(generated, skip_special_tokens=True)},
        {"q": "the film 2", "a": "no"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = evaluate(task, data, path)
    assert found.results["mine"].scores == {"exact_match": 0.5}
    assert found.results["mine"].per_item["exact_match"] == [1.0, 0.0]


def test_rolling_perplexity_equals_that_of_lm_eval(byte_llama: str, tmp_path: Path) -> None:
    from lm_eval.evaluator import evaluate as harness_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    metrics = [
        {"metric": metric, "aggregation": how, "higher_is_better": False}
        for metric, how in (("byte_perplexity", "weighted_perplexity"), ("bits_per_byte", "bits_per_byte"))
    ]
    path = write_task(
        tmp_path, output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{q}}", metric_list=metrics
    )
    task, data = causal(byte_llama)
    found = evaluate(task, data, path)
    lm = HFLM(pretrained=task.backbone.eval(), tokenizer=data.tokenizer, batch_size=2)
    expected = harness_evaluate(lm, TaskManager(include_defaults=False).load([path]))["results"]["mine"]
    for metric in ("byte_perplexity", "bits_per_byte"):
        assert found.results["mine"].scores[metric] == pytest.approx(expected[f"{metric},none"], rel=1e-5)
    assert found.results["mine"].standard_errors == {}  # lm-eval has none


def test_a_group_has_the_mean_score_of_its_tasks(byte_llama: str, tmp_path: Path) -> None:
    names = [p.stem for p in (TASKS / "blimp").glob("*.yaml")]
    sets = [yaml.safe_load((TASKS / "blimp" / f"{n}.yaml").read_text().replace("!function", "")) for n in names]
    for config in sets:
        if "dataset_kwargs" in config:
            rows = [{"sentence_good": f"it was {i}", "sentence_bad": f"was it {config['task'][-i:]}"} for i in (1, 2)]
            (tmp_path / f"{config['dataset_kwargs']['name']}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task, data = causal(byte_llama)
    found = evaluate(task, data, "litpeft_blimp", data_dir=str(tmp_path))
    group = found.results["litpeft_blimp"]
    assert len(group.tasks) == 67
    assert group.items == 2 * 67
    scores = [found.results[name].scores["acc"] for name in group.tasks]
    assert group.scores["acc"] == pytest.approx(sum(scores) / 67)
    some = evaluate(task, data, "litpeft_blimp_p*", data_dir=str(tmp_path), limit=1)
    assert "litpeft_blimp" not in some.results
    assert {name for name in some.results if name.startswith("litpeft_blimp_p")} == set(some.results)
    assert all(result.items == 1 for result in some.results.values())


def test_an_encoder_decoder_runs_through_lm_eval(tiny_model: str, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    from litpeft.adapters import LoRA
    from litpeft.data import ArithmeticInstructions
    from litpeft.tasks import Seq2SeqLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="[SEP]")
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    data = ArithmeticInstructions(tokenizer=str(tmp_path / "t5"), train_rows=8, val_rows=4)
    task = Seq2SeqLM(str(tmp_path / "t5"), LoRA(rank=2), dtype="fp32")
    task.build(data, torch.device("cpu"))
    found = evaluate(task, data, write_task(tmp_path))
    assert not found.skipped
    assert found.results["mine"].items == 3


def test_missing_tasks_files_and_packages_are_one_sentence(
    byte_llama: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"lm-eval has no task 'litpeft_blimp_caustic' \(did you mean litpeft_blimp_ca"):
        find(["litpeft_blimp_caustic"], Options())
    with pytest.raises(UserError, match=r"litpeft_mmlu_anatomy: the hub cannot be reached, .* benchmarks.data_dir\.$"):
        find(["litpeft_mmlu_anatomy"], Options())
    with pytest.raises(UserError, match=r"data_dir .*: there is no causative.jsonl in it or below it"):
        find(["litpeft_blimp_causative"], Options(data_dir=str(tmp_path)))
    (tmp_path / "causative.jsonl").write_text('{"sentence_good": "a"}\n')
    with pytest.raises(UserError, match=r"data_dir: .* does not hold items .*: \[0\] lacks sentence_bad"):
        find(["litpeft_blimp_causative"], Options(data_dir=str(tmp_path)))
    (tmp_path / "causative.jsonl").write_text('{"sentence_good": "a"\n')
    with pytest.raises(UserError, match=r"causative.jsonl line 1 is not JSON"):
        find(["litpeft_blimp_causative"], Options(data_dir=str(tmp_path)))
    (tmp_path / "anatomy_test.csv").write_text("which?,a,b,c,d,E\n")
    with pytest.raises(UserError, match=r"anatomy_test.csv line 1 must be a question, four answers, and A, B, C or D"):
        find(["litpeft_mmlu_anatomy"], Options(data_dir=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(UserError, match=r"^benchmarks.tasks piqa needs lm-eval: pip install 'litpeft\[eval\]'"):
        find(["piqa", "litpeft_generated_2ds"], Options())


def test_a_classifier_is_refused(tiny_model: str, sentences: dict[str, str]) -> None:
    task = SequenceClassification(tiny_model)
    data = TextClassification(train_file=sentences["train"], tokenizer=tiny_model)
    with pytest.raises(UserError, match="litpeft_generated_2ds needs a language model, not SequenceClassif"):
        evaluate(task, data, "litpeft_generated_2ds")


def test_a_task_that_runs_generated_code_is_refused(byte_llama: str, tmp_path: Path) -> None:
    task, data = causal(byte_llama)
    with pytest.raises(UserError, match="mine executes code from the model; run it with lm-eval"):
        evaluate(task, data, write_task(tmp_path, unsafe_code=True))


def test_a_failing_task_does_not_affect_other_tasks(byte_llama: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def score(doc, results):\n    raise ZeroDivisionError('by hand')\n")
    path = Path(write_task(tmp_path))
    path.write_text(f"{path.read_text()}process_results: !function broken.score\n")
    task, data = causal(byte_llama)
    found = evaluate(task, data, str(path), "litpeft_generated_1da", limit=3)
    assert found.skipped == {"mine": "ZeroDivisionError: by hand"}
    assert found.results["litpeft_generated_1da"].items == 3
    assert task.backbone.training


def test_an_evaluation_does_not_change_the_model_or_the_tokenizer(byte_llama: str) -> None:
    task, data = causal(byte_llama)
    task.backbone.model.layers[0].eval()
    before = {name: tensor.clone() for name, tensor in task.backbone.state_dict().items()}
    modes = [module.training for module in task.modules()]
    data.tokenizer.pad_token = None
    torch.manual_seed(7)
    draw = torch.get_rng_state()
    evaluate(task, data, "litpeft_generated_2ds", limit=4)
    assert torch.equal(torch.get_rng_state(), draw)
    assert [module.training for module in task.modules()] == modes
    assert data.tokenizer.pad_token is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.backbone.state_dict().items())
    assert "tie_weights" not in vars(task.backbone)


def test_an_adapted_embedding_stays_untied_from_the_head(byte_llama: str) -> None:
    from litpeft.adapters import LoRA

    task, data = causal(byte_llama, LoRA(rank=2, targets=["embed_tokens"]))
    ids = torch.tensor([[1, 2, 3]])
    task.backbone.eval()
    with torch.no_grad():
        before = task.backbone(ids).logits
        evaluate(task, data, "litpeft_generated_2ds", limit=4)
        assert torch.equal(task.backbone(ids).logits, before)
    plain = AutoModelForCausalLM.from_pretrained(byte_llama).eval()
    assert not torch.allclose(plain(ids).logits, before, atol=1e-3)
