"""Unusual and invalid values of options."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = [
    *("", " ", "null", "~", "None", "true", "True", "no", "nan", ".nan", "inf", "-.inf", "Infinity", "1e400", "1e-400"),
    *("-1", "0", "-0.0", "0.5", "1", "2", "7", "1.5", "1e5", "01", "0x10", "1_000", "1e", "+3", "1/2", "١٢", "²", "3 "),
    *("2147483648", "4294967296", "9223372036854775808", "-9223372036854775809", "9" * 30, "9" * 5000, "-" + "9" * 400),
    *("[]", "[1,2]", "[null]", "[[[[", "}", "{}", "{a: b}", "{1: 2}", "[a,b]", "[a", "a: b: c", "{a: {b: [c]}}", "? x"),
    *("LoRA", "QLoRA", "Full", "SST2", "CausalLM", "torch.optim.SGD", "AdamW", "os.system", "litpeft.adapters.LoRA"),
    *("torch.nn.Linear", "torch.optim", "litpeft", "a.b.c", "..", ".", "./", "a/b", "~nobody", "nowhere", "train.tsv"),
    *(
        "bert",
        "llama",
        "one.yaml",
        "template.yaml",
        "existing",
        "existing/record.json",
        "package:torch",
        "demo:none",
        "demo:",
    ),
    *('{"class_path": "LoRA", "init_args": {"rank": 0}}', '{"class_path": "os.system", "init_args": {"command": "x"}}'),
    *('{"class_path": 3}', '{"class_path": null}', '{"class_path": "LoRA", "init_args": 3}', '{"init_args": {}}'),
    *(
        "ü",
        "日本",
        "é" + "\u0301",
        "\u202etxet\u202c",
        "\u2028",
        "\u200b",
        "\ufeff",
        "\U0001f600",
        "\udcff",
        "a\udc80b",
    ),
    *(
        "a\nb",
        "a\rb",
        "a\tb",
        "\x1b[31mred",
        "\x07",
        "\x7f",
        "\x85",
        "x" * 300,
        "word " * 2000,
        "(",
        "(a+)+$",
        "*",
        "[",
    ),
    *(
        "!!python/object/apply:os.system [true]",
        "!x",
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "%s%n",
        "{0}",
        "${HOME}",
        "'",
        '"',
    ),
    *(
        *("--data", "-"),
        *("--", "=", "a=b", "@x", "%", "val_accuracy", "val_accuracy=", "=1", "val_loss=x", "lora", "seed,lr"),
    ),
]
# no value may be a path that leads out of the folder
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20), st.integers(-3, 300), st.floats(allow_nan=True, allow_infinity=True)
)
TEXTS = st.text(max_size=12).filter(lambda text: "/" not in text and "~" not in text and "\0" not in text)
STRINGS = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), NUMBERS.map(str), TEXTS)
ARGUMENTS = STRINGS.filter(lambda text: "\0" not in text)  # a process argument cannot contain NUL

TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS, st.sampled_from(["nul\0byte", "\0"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "rank", "lr", "", "class_path"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
