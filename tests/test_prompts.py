"""Lists of prompts: every kind of file is read as it is meant, and what cannot be meant is one sentence."""

import json

import pytest
from PIL import Image

from training.metrics import vbench_environment
from training.metrics.prompts import Row, read


@pytest.fixture
def listed(tmp_path):
    """Write a list and read it."""
    Image.new("RGB", (24, 16), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def call(content, name="list.json"):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return read(str(tmp_path / name), tmp_path / "nowhere")

    return call


def test_each_kind_of_file_is_a_list_of_rows(listed, tmp_path):
    prompts = ["a red circle", "ein Kreis, größer 圆"]
    expected = [Row(prompt) for prompt in prompts]
    assert listed(json.dumps(prompts)) == expected
    assert listed(json.dumps(prompts, ensure_ascii=False), "LIST.JSON") == expected
    assert listed("".join(json.dumps(prompt) + "\n\n" for prompt in prompts), "list.jsonl") == expected
    assert listed("\ufeff  a red circle \r\n\r\nein Kreis, größer 圆", "list.txt") == expected
    assert listed(json.dumps(dict(zip("ab", prompts, strict=True)))) == expected
    row = {
        "prompt": "it grows",
        "image": "red.png",
        "text_weight": 0,
        "image_weight": 0.5,
        "negative": "blur",
    }
    guided = {"image": "red.png", "guidance": "separate", "text_guidance": 3, "image_guidance": 1.5}
    assert listed("\n".join(map(json.dumps, (row, guided, "x"))), "list.jsonl") == [
        Row(**row | {"image": tmp_path / "red.png"}),
        Row(**guided | {"image": tmp_path / "red.png"}),
        Row("x"),
    ]


def test_a_prompt_may_stand_there_twice(listed):
    """As captions do in MSR-VTT; each gets another seed."""
    assert listed("a man talks\na man talks\n", "list.txt") == [Row("a man talks")] * 2


def test_the_prompts_of_ucf_101_ship(tmp_path):
    rows = read("ucf101", tmp_path)
    assert len({row.prompt for row in rows}) == len(rows) == 101
    assert rows[0] == Row("applying eye makeup") and rows[-1] == Row("a kid playing Yo-Yo")


def test_the_prompts_of_vbench_come_from_its_environment(tmp_path):
    with pytest.raises(ValueError, match="no environment .*python -m training vbench --install"):
        read("vbench", tmp_path)
    folder = tmp_path / "lib" / "python3.11" / "site-packages" / "vbench"
    folder.mkdir(parents=True)
    (tmp_path / vbench_environment.MARK).write_text('{"vbench": "0.1.5"}')
    with pytest.raises(ValueError, match="has no vbench/VBench_full_info.json"):
        read("vbench", tmp_path)
    entries = [{"prompt_en": prompt, "dimension": ["scene"]} for prompt in ("b", "a", "b")]
    for bad in ("{", "[1]", '[{"prompt_en": 1}]', '[{"prompt_en": "a"}]'):
        (folder / vbench_environment.LIST).write_text(bad)
        with pytest.raises(ValueError, match="VBench_full_info.json is damaged"):
            read("vbench", tmp_path)
    (folder / vbench_environment.LIST).write_text(json.dumps(entries))
    assert read("vbench", tmp_path) == [Row("b"), Row("a")]  # what stands there twice has one video


BAD = {
    "empty": ("", "list.txt", "expected prompts in .*list.txt, got none"),
    "blank lines": ("\n \n", "list.jsonl", "got none"),
    "an empty list": ("[]", "list.json", "got none"),
    "an empty file": ("", "list.json", "got none"),
    "latin-1": ("Käse".encode("latin-1"), "list.txt", r"no UTF-8 text \(byte 1\); save it"),
    "utf-16": ("a".encode("utf-16"), "list.json", "no UTF-8 text"),
    "cut": ('["a"', "list.json", "no JSON that can be read"),
    "a cut line": ('"a"\n{"prompt"', "list.jsonl", "line 2 of .*list.jsonl is no JSON"),
    "deep": ("[" * 100_000, "list.json", "no JSON that can be read"),
    "a number": ("7", "list.json", "expected a list of prompts .*, got a number"),
    "one row": ('{"prompt": "a"}', "list.json", "got an object; put"),
    "another suffix": ("a", "list.csv", "as .json, .jsonl or .txt, ucf101 or vbench"),
    "a row of another kind": (
        '["a", 7]',
        "list.json",
        "row 2 of .*: expected a prompt or an object, got a n",
    ),
    "an unknown key": ('[{"caption": "a"}]', "list.json", "row 1 of .* expected the keys prompt, .* caption"),
    "nothing said": ('["a", "  "]', "list.json", "row 2 .* expected a prompt, an image or both, got neither"),
    "a prompt of no text": ('[{"prompt": ["a"]}]', "list.json", "prompt must be a text, got a list"),
    "half a letter": ('["\\ud800"]', "list.json", "a letter that no text can have"),
    "a zero": ('["a\\u0000"]', "list.json", "a letter that no text can have"),
    "nan": ('[{"prompt": "a", "text_weight": NaN}]', "list.json", "text_weight must be a finite number"),
    "true": ('[{"prompt": "a", "text_weight": true}]', "list.json", "text_weight must be a finite number"),
    "huge": (
        '[{"prompt": "a", "guidance_scale": 1%s}]' % ("0" * 400),
        "list.json",
        "must be a finite number",
    ),
    "no picture": (
        '[{"image": "gone.png"}]',
        "list.json",
        r"row 1 of .*gone.png cannot be read as a picture",
    ),
    "broken": ('[{"image": "broken.png"}]', "list.json", "row 1 of .*broken.png cannot be read as a picture"),
    "idle": ('[{"prompt": "a", "image_weight": 1}]', "list.json", "image_weight needs a picture"),
}


@pytest.mark.parametrize("content, name, message", BAD.values(), ids=BAD)
def test_a_list_that_cannot_be_meant_is_refused(content, name, message, listed):
    with pytest.raises(ValueError, match=message):
        listed(content, name)


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing.txt cannot be read"):
        read(str(tmp_path / "nothing.txt"), tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="it is a folder"):
        read(str(tmp_path / "folder.json"), tmp_path)
