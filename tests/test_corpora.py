"""Packing by hand, one reading whatever the format, and an error that names the file for every
broken one.
"""

import gzip
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import BOS
from faithful_sae.features.text import text_ids
from faithful_sae.lm.embedded import train_tokenizer
from faithful_sae.stages.corpus import corpus_rows
from faithful_sae.stages.text import labelled, source_problems
from faithful_sae.text.packing import Cut, is_content, pack, tokenize, without_end
from faithful_sae.text.read import CorpusError, read_records

TEXTS = ['w3 w4, "quoted"', "first line\nsecond line", "żółć 漢字 🙂", "NA", "12", "w5"]
RECORDS = [{"text": t, "label": i % 2} for i, t in enumerate(TEXTS)]


# --- packing --------------------------------------------------------------------------------------


def test_a_sampled_document_without_an_end_was_cut():
    kept = list(without_end([[4, 5, 1], [6, 7], [1], [8, 0]], {0, 1}))
    assert kept == [[4, 5], Cut([6, 7]), [8]]


def test_a_document_that_was_cut_begins_a_row_and_nothing_follows_it():
    """Rows of 3 tokens after BOS 99. The finished documents are joined as if the others were not
    there; of a cut one, what fills no row is joined to them.
    """
    documents = [[1, 2], Cut([10, 11, 12]), [3], Cut([20, 21, 22, 23]), [4, 5]]
    rows = pack(documents, 99, 4, 1000)
    assert rows.tolist() == [
        [99, 10, 11, 12],
        [99, 1, 2, 99],
        [99, 20, 21, 22],
        [99, 3, 99, 23],
        [99, 99, 4, 5],
    ]


def test_pack_by_hand():
    """Stream 1 2 3 | B 4 | B 5 6 7 8 | B 9, cut into threes, BOS in front of each; 9 fills no
    row.
    """
    rows = pack([[1, 2, 3], [4], [5, 6, 7, 8], [9]], 99, 4, 1000)
    assert rows.tolist() == [[99, 1, 2, 3], [99, 99, 4, 99], [99, 5, 6, 7], [99, 8, 99, 9]]
    assert rows.dtype == np.int32
    assert pack([[1, 2, 3], [4], [5, 6]], 99, 4, 1000).tolist() == [
        [99, 1, 2, 3],
        [99, 99, 4, 99],
    ]  # 5 6 fill no row


def test_content_is_all_but_bos():
    rows = pack([[1, 2, 3], [4], [5, 6, 7, 8]], 99, 4, 1000)
    assert is_content(rows, 99).tolist() == [
        [False, True, True, True],
        [False, False, True, False],
        [False, True, True, True],
    ]


@pytest.mark.parametrize("max_tokens, rows", [(3, 0), (4, 1), (7, 1), (8, 2), (12, 3), (1000, 4)])
def test_pack_stops_at_max_tokens_and_reads_no_further(max_tokens, rows):
    taken = []

    def documents():
        for i in range(100):
            taken.append(i)
            yield [i * 10, i * 10 + 1]
            if i == 4:
                return

    got = pack(documents(), 99, 4, max_tokens)
    stream = [0, 1, 99, 10, 11, 99, 20, 21, 99, 30, 31, 99, 40, 41]
    assert got.tolist() == [[99, *stream[3 * r : 3 * r + 3]] for r in range(rows)]
    assert got.size <= max_tokens
    if max_tokens == 4:
        assert taken == [0, 1]


def test_pack_of_nothing():
    assert pack([], 99, 4, 100).shape == (0, 4)
    assert pack([[1]], 99, 4, 100).shape == (0, 4)


def test_pack_random_documents():
    rng = np.random.default_rng(0)
    for _ in range(200):
        documents = [
            rng.integers(1, 50, rng.integers(1, 9)).tolist() for _ in range(rng.integers(1, 12))
        ]
        width, limit = int(rng.integers(2, 8)), int(rng.integers(1, 80))
        rows = pack(documents, 0, width, limit)
        stream = [i for d in documents for i in (0, *d)][1:]
        n = min(len(stream) // (width - 1), limit // width)
        assert rows.shape == (n, width)
        assert (rows[:, 0] == 0).all()
        assert rows[:, 1:].flatten().tolist() == stream[: n * (width - 1)]


def test_tokenize_passes_over_empty_documents(lm):
    assert list(tokenize(iter(["w3 w4", "", "  ", "w5"]), lm.tokenizer)) == [[3, 4], [5]]
    assert list(tokenize((f"w{2 + i % 50}" for i in range(2500)), lm.tokenizer)) == [
        [2 + i % 50] for i in range(2500)
    ]


# --- formats --------------------------------------------------------------------------------------


def write(path, records=RECORDS):
    opened = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        pd.DataFrame(records).to_parquet(path)
    elif kind == "csv":
        pd.DataFrame(records).to_csv(path, index=False)
    else:
        with opened(path, "wt", encoding="utf-8") as out:
            for record in records:
                out.write(
                    json.dumps(record, ensure_ascii=False) + "\n"
                    if kind == "jsonl"
                    else record["text"] + "\n\n"
                )
    return path


FORMATS = ["t.jsonl", "t.csv", "t.parquet", "t.txt", "t.jsonl.gz", "t.csv.gz", "t.txt.gz"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = write(tmp_path / name)
    assert [text for (text,) in read_records(path, ["text"])] == TEXTS
    if ".txt" not in name:
        assert list(read_records(path, ["text", "label"])) == [
            (t, str(i % 2)) for i, t in enumerate(TEXTS)
        ]


def test_blank_texts_and_lines_are_passed_over(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "  "}\n{"text": ""}\n{"text": "b", "more": 1}\n')
    assert list(read_records(path, ["text"])) == [("a",), ("b",)]
    path = tmp_path / "t.txt"
    path.write_text("\n\na\nb\n \n\nc\r\n\r\nd")
    assert list(read_records(path, ["text"])) == [("a\nb",), ("c",), ("d",)]


def refused(path, *words, keys=("text",)):
    with pytest.raises(CorpusError) as error:
        list(read_records(path, list(keys)))
    assert str(path) in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet", "t.jsonl.gz"])
def test_wrong_key(tmp_path, name):
    refused(write(tmp_path / name), "'body'", "'text'", keys=("body",))
    refused(write(tmp_path / name), "'class'", "'label'", keys=("text", "class"))


def test_a_key_missing_later_names_its_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n\n{"other": "b"}\n')
    refused(path, "line 3", "'text'", "'other'")
    path.write_text('{"text": "a"}\n["b"]\n')
    refused(path, "line 2")


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')
    refused(path, "line 3", "not JSON")


def test_text_of_another_type_names_its_record(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a"}\n{"text": 7}\n')
    refused(path, "record 2", "int")
    refused(write(tmp_path / "t.parquet"), "not text", keys=("label",))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.txt"])
def test_not_utf8(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(
        {"t.jsonl": b'{"text": "caf\xe9"}\n', "t.csv": b"text\ncaf\xe9\n", "t.txt": b"caf\xe9\n"}[
            name
        ]
    )
    refused(path, "not UTF-8")


@pytest.mark.parametrize("name", FORMATS)
def test_empty_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    refused(path)
    path.write_bytes(b"")
    refused(path)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_records_without_any_text(tmp_path, name):
    refused(write(tmp_path / name, [{"text": "", "label": 0}, {"text": " ", "label": 1}]), "empty")


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv.gz", "t.txt.gz", "t.parquet"])
def test_truncated(tmp_path, name):
    rng = np.random.default_rng(0)
    path = write(
        tmp_path / name, [{"text": f"w{rng.integers(10**9)}", "label": 0} for _ in range(3000)]
    )
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path)


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.csv.gz", "t.txt.gz"])
def test_a_flipped_byte_in_compressed_text(tmp_path, name):
    rng = np.random.default_rng(0)
    path = write(
        tmp_path / name, [{"text": f"w{rng.integers(10**9)}", "label": 0} for _ in range(3000)]
    )
    whole = path.read_bytes()
    for at in (30, 200, 5000, len(whole) - 6):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        refused(path)


@pytest.mark.parametrize(
    "lines, said",
    [
        ("text,label\na,1\nb,2,3,4\n", "line 3 has 4 fields, and the first line names 2"),
        ("text\nHello, world\n", "line 2 has 2 fields, and the first line names 1"),
        ("text,label\na,1\nb\n", "line 3 has 1 fields"),
        ('text,label\n"a" b,1\n', "line 2 is not csv"),
        ('text,label\na,1\n"b,0\nc,1\n', "line 4 is not csv (unexpected end of data)"),
        ("text,text\na,b\n", "more than one column 'text'"),
    ],
)
def test_a_csv_is_never_guessed_at(tmp_path, lines, said):
    path = tmp_path / "t.csv"
    path.write_text(lines)
    refused(path, said)


def test_csv_fields_are_text_as_they_stand(tmp_path):
    """Numbers, truth values and what pandas takes for missing; a line break and quotes; a text
    longer than the csv module's own limit.
    """
    path = tmp_path / "t.csv"
    long = "w2 " * 100_000
    path.write_text(f'more,text,label\n,12,01\nx,NA,1\ny,"a ""b""\nc",1.0\n\nz,{long},True\n')
    assert list(read_records(path, ["text", "label"])) == [
        ("12", "01"),
        ("NA", "1"),
        ('a "b"\nc', "1.0"),
        (long, "True"),
    ]


def test_parquet_with_two_columns_of_one_name(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    refused(path, "more than one column 'text'")


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.txt", "t.csv.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    path = write(tmp_path / name)
    zipped = name.endswith(".gz")
    content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
    marked = b"\xef\xbb\xbf" + content
    path.write_bytes(gzip.compress(marked) if zipped else marked)
    assert [text for (text,) in read_records(path, ["text"])] == TEXTS


def test_half_of_a_surrogate_pair_names_its_record(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}\n{"text": "a \\ud800 b"}\n')
    refused(path, "record 2", "'\\ud800'", "surrogate")


@pytest.mark.parametrize(
    "value, text", [('"x"', "x"), ("0", "0"), ("-1", "-1"), ("true", "True"), ("2.0", "2")]
)
def test_a_label_is_text(tmp_path, value, text):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"text": "a", "label": {value}}}\n')
    assert list(read_records(path, ["text", "label"])) == [("a", text)]


@pytest.mark.parametrize("value", ["null", "NaN", "0.73", '["a"]', '{"a": 1}', '""', '" "'])
def test_what_is_no_label_names_its_record(tmp_path, value):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": {value}}}\n')
    refused(path, "record 2", "'label'", "names no class", keys=("text", "label"))


def test_a_missing_label_of_a_parquet_file_names_its_record(tmp_path):
    """Where a label is missing, pandas writes the others as floats: 1.0 is the class 1."""
    path = write(tmp_path / "t.parquet", [{"text": "a", "label": 1}, {"text": "b", "label": None}])
    refused(path, "record 2", "'label' holds", keys=("text", "label"))


def test_unknown_format_and_missing_file(tmp_path):
    path = tmp_path / "t.docx"
    path.write_bytes(b"x")
    refused(path, "'.docx'", "jsonl")
    for name in FORMATS:
        refused(tmp_path / f"missing_{name}")


# --- corpora of a run -----------------------------------------------------------------------------


def test_rows_of_a_run(make_run, lm):
    run = make_run()
    got = corpus_rows(run, "text", lm)
    texts = [
        json.loads(line)["text"]
        for line in (run.file.parent / "text.jsonl").read_text().splitlines()
    ]
    stream = [i for t in texts for i in (BOS, *(int(w[1:]) for w in t.split()))][1:]
    rows = np.concatenate([got.train, got.heldout])
    assert rows.shape == (50, 12)
    assert rows.size <= run.corpus_tokens
    assert (rows[:, 0] == BOS).all()
    assert rows[:, 1:].flatten().tolist() == stream[: 50 * 11]
    assert (len(got.train), len(got.heldout)) == (40, 10)


def test_generated_ids_are_used_as_sampled_unless_the_tokenizer_differs(
    make_run, lm, model_folders
):
    from conftest import make_tokenizer

    run = make_run()
    ids = [np.array([3, 4, 5, 1] * 30, np.int32)] * 10
    own = corpus_rows(run, "faithful", lm, ("a", ids, lm.tokenizer))
    assert (np.asarray(own.train) == 1).any()  # EOS is in the ids that were sampled
    other = corpus_rows(run, "faithful", lm, ("b", ids, make_tokenizer(40)))
    assert not (np.asarray(other.train) == 1).any()
    assert set(np.unique(other.train)) == {0, 3, 4, 5}
    assert own.key != other.key


def test_a_corpus_too_small(make_run, lm):
    with pytest.raises(CorpusError, match=r"corpora.text: only 2 rows of 12"):
        corpus_rows(make_run({"corpus_tokens": 24}), "text", lm)


def test_a_changed_file_is_packed_anew(make_run, lm):
    run = make_run()
    before = corpus_rows(run, "text", lm)
    file = run.file.parent / "text.jsonl"
    file.write_text(file.read_text().replace("w2 ", "w3 "))
    after = corpus_rows(run, "text", lm)
    assert after.key != before.key
    assert not np.array_equal(after.train, before.train)


def test_labelled(make_run):
    run = make_run({"probing.max_train": 10, "probing.max_test": 7})
    (texts, labels), (test_texts, test_labels) = labelled(run, "parity")
    true = {
        r["text"]: str(r["label"])
        for r in map(json.loads, (run.file.parent / "train.jsonl").read_text().splitlines())
    }
    assert len(texts) == len(labels) == 10
    assert len(test_texts) == len(test_labels) == 7
    assert [true[t] for t in texts] == labels
    assert [true[t] for t in test_texts] == test_labels
    assert labelled(run, "parity")[0] == (texts, labels)
    assert texts != list(true)[:10]


def write_task(run, train, test):
    for name, labels in (("train", train), ("test", test)):
        records = [{"text": f"w{i}", "label": label} for i, label in enumerate(labels)]
        write(run.file.parent / f"{name}.jsonl", records)


def test_examples_are_drawn_from_the_whole_of_sorted_files(make_run):
    """Of 100 texts sorted by class, half of them in each, a tenth is drawn: all of one class would
    be a chance of 0.002.
    """
    run = make_run({"probing.max_train": 10, "probing.max_test": 10})
    write_task(run, ["a"] * 50 + ["b"] * 50, ["a"] * 50 + ["b"] * 50)
    train, test = labelled(run, "parity")
    for texts, labels in (train, test):
        assert [label == "b" for label in labels] == [int(text[1:]) >= 50 for text in texts]
        assert set(labels) == {"a", "b"}
        assert len(set(texts)) == 10


@pytest.mark.parametrize(
    "train, test, said",
    [
        (["x", "y"] * 3, ["x", "z", "z"], "test labels never occur in training: 1 class ('z' 2)"),
        (["x"] * 4, ["x"], "two classes .*: the 4 training texts have 1 class ('x' 4)"),
        ([str(i / 7) for i in range(20)], ["0.0"], "20 classes .* and 10 more), most of them once"),
        (["x", "y"] * 3, [None], "record 1: 'label' holds None"),
        (["1", 1, "01"] * 2, ["2"], "test labels never occur in training"),
    ],
)
def test_labels_that_cannot_be_probed_are_found_before_any_work(make_run, train, test, said):
    run = make_run()
    write_task(run, train, test)
    (problem,) = source_problems(run)
    assert problem.startswith(f"{run.file}: probing.tasks.parity: ")
    assert re.search(re.sub(r"([()+])", r"\\\1", said), problem)


def test_every_bad_file_is_listed_with_the_key_of_the_yaml(make_run):
    run = make_run()
    assert not list(source_problems(run))
    (run.file.parent / "test.jsonl").write_text('{"text": "a"}\n')
    (run.file.parent / "text.jsonl").write_text("")
    empty, lacking = source_problems(run)
    assert empty.startswith(f"{run.file}: corpora.text.path: ")
    assert "empty" in empty
    assert lacking.startswith(f"{run.file}: probing.tasks.parity: {run.file.parent}/test.jsonl: ")
    assert "line 1 has no key 'label'" in lacking


# --- special tokens written in a text -------------------------------------------------------------

WRITTEN = ["x<|endoftext|>y", "<|endoftext|>", "plain text"]


def test_a_special_token_written_in_a_text_is_text():
    tokenizer = train_tokenizer(["the plain text of a page"] * 3, 280)
    for text, ids in zip(WRITTEN, tokenize(WRITTEN, tokenizer), strict=True):
        assert tokenizer.bos_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_an_added_token_that_is_not_special_stays_one():
    """As GPT-NeoX's runs of blanks: ids of a text without special tokens are as they were."""
    tokenizer = train_tokenizer(["the plain text of a page"] * 3, 280)
    tokenizer.add_tokens(["plain"])
    (ids,) = tokenize(["plain text"], tokenizer)
    assert ids == tokenizer("plain text", add_special_tokens=False).input_ids
    assert len(tokenizer) - 1 in ids


def test_what_is_probed_and_typed_in_is_text_too(lm):
    """BOS comes first, and nowhere else."""
    lm.tokenizer = train_tokenizer(["ab"], 257)
    lm.tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
    ids = text_ids(lm, "a<|e|><|endoftext|>")[0].tolist()
    assert ids.count(lm.tokenizer.bos_token_id) == 1 and ids[0] == lm.bos_id
