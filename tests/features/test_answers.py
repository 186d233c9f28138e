"""Every form that models answer in gives its values back; what cannot be read says why."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.features.descriptions.parse import FORMS, REASONS, infer_slots, parse, slots_of_prompt

SLOTS = ("Category", "Age Group", "Purpose", "Material", "Usage Context")
VALUES = ("Feeding", "Infant", "Hygiene", "Silicone", "Home")
RENDERED = {
    "strict": ("[{s}] {{{v}}}", " "),
    "line": ("{s}: {v}", ", "),
    "lines": ("{s}: {v}", "\n"),
    "brackets": ("[{s}] {v}", ", "),
    "positional": ("{{{v}}}", " "),
    "list": ("{v}", ", "),
}
VARIANTS = {
    "strict": [("[{s}] {{{v}}}", ", "), ("[{s}]{{{v}}}", "\n")],
    "line": [("{s}: {v}", " "), ("{s}: {{{v}}}", ", "), ("**{s}**: {v}", "; ")],
    "lines": [("- {s}: {v}", "\n"), ("* **{s}:** {v}", "\n\n"), ("{s} = {v}", "\n")],
    "brackets": [
        ("{{{s}}} {{{v}}}", " "),
        ("[{s}: {v}]", ", "),
        ("{s} {{{v}}}", ", "),
        ("[{s}] [{v}]", " "),
        ("[{s}]: {v}", "\n"),
        ("{{{s}: {v}}}", " "),
        ("['{s}'] {{{v}}}", " "),
    ],
    "positional": [("[] {{{v}}}", ", "), ("[{v}]", " ")],
    "list": [("{v}", "\n"), ("- {v}", "\n"), ("1. {v}", "\n"), ("{v}", "; ")],
}
CASES = [(form, *way) for form in RENDERED for way in [RENDERED[form], *VARIANTS[form]]]


def render(pattern, joint, values, slots=SLOTS):
    return joint.join(pattern.format(s=s, v=v) for s, v in zip(slots, values, strict=True))


@pytest.mark.parametrize(("form", "pattern", "joint"), CASES)
def test_forms(form, pattern, joint):
    assert set(RENDERED) | {"partial", "none"} == set(FORMS)
    answer = render(pattern, joint, VALUES)
    for text in (answer, f"{answer}.", f"  {answer}\n", answer.replace("Age Group", "age-group")):
        found = parse(text, SLOTS)
        assert (found.values, found.reason) == (VALUES, ""), text
        if text != answer.replace("Age Group", "age-group"):
            assert found.form == form, text


# A value is one to four words; punctuation inside it, as models write it.
word = st.from_regex(r"[A-Za-z0-9éß&/'+-]{1,10}", fullmatch=True).filter(
    lambda w: w.strip("-'\"*") == w and w.casefold() not in {s.casefold() for s in SLOTS}
)
value = st.lists(word, min_size=1, max_size=4).map(" ".join)


@pytest.mark.slow
@given(st.sampled_from(CASES), st.lists(value, min_size=5, max_size=5), st.booleans())
def test_rendered_values_come_back(case, values, period):
    form, pattern, joint = case
    text = render(pattern, joint, values) + "." * period
    found = parse(text, SLOTS)
    assert (found.form, found.values) == (form, tuple(values))


@pytest.mark.slow
@given(st.lists(value, min_size=5, max_size=5))
def test_a_list_literal_comes_back(values):
    assert parse(repr(values), SLOTS) == ("list", tuple(values), "")
    wrapped = repr([render(*RENDERED["lines"], values)])
    assert parse(wrapped, SLOTS).values == tuple(values)
    assert parse(repr([render(*RENDERED["strict"], values)]), SLOTS).form == "strict"


@given(st.text(), st.lists(st.sampled_from("[]{}:,.\n'\" ") | word, max_size=40).map("".join))
def test_no_answer_raises(text, brackets):
    for answer in (text, brackets, f"[Category] {brackets}", f"Category: {text}, Purpose: "):
        found = parse(answer, SLOTS)
        assert found.form in FORMS
        assert len(found.values) == len(SLOTS)
        assert (found.reason == "") == all(found.values)
        assert not found.reason or found.reason in REASONS
        assert (found.form == "none") == (not any(found.values))
        assert all(v is None or v.strip() for v in found.values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("Here are five keywords:\n\n[Category] {a} [Age Group] {b} [Purpose] {c} "
         "[Material] {d} [Usage Context] {e}", "abcde"),
        ("Usage Context: e, Category: a, Age Group: b, Purpose: c, Material: d", "abcde"),
        ("Bib {a} [Age Group] {b} [Purpose] {c} [Material] {d} [Usage Context] {e}.", "abcde"),
        ("Bib {a} {b} [Purpose] {c} [Material] {d} [Usage Context] {e}.", "abcde"),
        ("a {b} [Purpose] {c} [Material] {d} [Usage Context] {e}", "abcde"),
        ("a [Age Group] {b} [Purpose] {c} [Material] {d} [Usage Context] {e}", "abcde"),
        ("a {Category} {Age Group} {b} {Purpose} {c} {Material} {d} {Usage Context} {e}", "abcde"),
        ("a {Category} {b} {Purpose} {c} {Material} {d} [Usage Context] {e}", "abcde"),
        ("a {b} {c} {d} {e}", "abcde"),
        ("a {b} {c} [d] [e}", "abcde"),
        ("Category: a, Age Group: b, Purpose: c, Material: d, Usage Context: e. It is a bib.",
         "abcde"),
        ("[Category] {a} [Age Group] {} [Purpose] {c} [Material] {d} [Usage Context] {e}",
         "a-cde"),
        ("[Category] {a}, [Age Group] {b}, [Purpo", "ab---"),
        ("[Category] {a}, [Age Group] {b}, [Purpose] {c", "ab---"),
    ],
)  # fmt: skip
def test_what_models_make_of_it(text, values):
    assert parse(text, SLOTS).values == tuple(None if v == "-" else v for v in values)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("[Category] {Feeding}, [Age Group] {Inf", "truncated"),
        ("Category: Feeding, Age Group:", "truncated"),
        ("Category: Feeding, Age Group: Infant", "too few values"),
        ("{Feeding} {Infant} {Home}", "too few values"),
        ("Feeding, Infant, Home", "too few values"),
        ("a {b} {c} {d} {e} {f} {g}", "too many values"),
        ("a, b, c, d, e, f, g", "too many values"),
        ("bib " * 40, "repetition"),
        ("Baby bib", "free text"),
        ("The image shows a bib of silicone, which is used at home to feed infants.", "free text"),
        ("[Category] [Age Group] [Purpose] [Material] [Usage Context]", "truncated"),
    ],
)
def test_what_cannot_be_read_says_why(text, reason):
    found = parse(text, SLOTS)
    assert found.reason == reason
    assert not all(found.values)


def test_a_slot_whose_name_is_part_of_another():
    slots = ("Type", "Pet Type", "Style")
    text = "[Type] {toy type} [Pet Type] {dog} [Style] {casual style}"
    assert parse(text, slots).values == ("toy type", "dog", "casual style")
    text = "Type: toy, Pet Type: dog, Style: casual style"
    assert parse(text, slots).values == ("toy", "dog", "casual style")


def test_slots_from_a_prompt_and_from_answers():
    prompt = "Fill in: [Category], [Age Group]. For example [Category] {Feeding}, [Age Group] {x}."
    assert slots_of_prompt(prompt) == ["Category", "Age Group"]
    strict, line = (render(*RENDERED[form], VALUES) for form in ("strict", "line"))
    noise = ["Note: it is a bib.", "Baby bib", ""]
    for answers in ([strict, strict, strict, *noise], [line] * 3 + noise, [line, strict]):
        assert infer_slots(answers) == list(SLOTS)
    assert infer_slots(noise[1:]) == []


@pytest.mark.parametrize(
    ("file", "least", "lost"),
    [("allrecipes_qwen2_keywords.csv", 0.9999, 0), ("allrecipes_phi35_keyword.csv", 0.9985, 10)],
)
def test_real_answers(shared, file, least, lost):
    path = shared / "data" / "allrecipes" / file
    if not path.exists():
        pytest.skip(f"no {path}")
    with open(path, newline="", encoding="utf-8") as rows:
        texts = [row["result"] for row in csv.DictReader(rows)]
    slots = infer_slots(texts)
    assert slots == ["Dish Type", "Cuisine", "Primary Ingredient", "Flavor Profile", "Meal Type"]
    found = [parse(text, slots) for text in texts]
    assert sum(not answer.reason for answer in found) >= least * len(found)
    assert sum(bool(answer.reason) for answer in found) == lost
    strict = sum(answer.form == "strict" for answer in found) / len(found)
    assert strict == pytest.approx({0: 0.9996, 10: 0.7986}[lost], abs=1e-4)
