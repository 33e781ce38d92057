"""`falcon bench` on a tiny random pair: outputs agree, reports are complete."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from fakes import save_random_drafter, save_random_target
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks import command
from benchmarks.loading import load_methods
from benchmarks.methods import EngineMethod, Task
from benchmarks.settings import GREEDY, Settings, parse_rivals, parse_variants
from drafter.checkpoint import save_drafter, target_fingerprint
from drafter.config import MedusaConfig
from drafter.medusa import MedusaHead
from tree.topology import Tree

END = 63
TREE = Tree.from_paths(
    [
        *([0], [1], [2], [3], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]),
        *([0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0, 0]),
    ]
)
MACHINE_KEYS = {"cpu", "cores", "torch", "transformers", "dtype", "device", "date", "threads"}


def llama(layers: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=END,
        bos_token_id=None,
    )


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 64 tokens, logits far apart to have clear picks; a tokenizer of letters."""
    folder = tmp_path_factory.mktemp("target")
    save_random_target(llama(layers=2), folder)
    letters = {chr(ord("0") + i): i for i in range(END)} | {"<end>": END}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    wrapped.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture
def drafter(target: Path, tmp_path: Path) -> Path:
    """Untrained: of 64 tokens it proposes enough that a few are right."""
    return save_random_drafter(target, tmp_path / "drafter", TREE)


@pytest.fixture
def prompts(tmp_path: Path) -> list[Path]:
    files = {"first": ["ABC", "HELLO", "A" * 120], "second": ["WHY"]}
    for name, texts in files.items():
        lines = [json.dumps({"prompt": text}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return [tmp_path / f"{name}.jsonl" for name in files]


def bench(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_all_methods_give_the_baselines_tokens(
    target: Path,
    drafter: Path,
    prompts: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rivals = {
        "eagle": save_random_drafter(target, tmp_path / "eagle", block_size=1, mixer="linear"),
        "medusa": tmp_path / "medusa",
        "sps": save_random_target(llama(layers=1), tmp_path / "sps"),
    }
    config = MedusaConfig(
        hidden_size=32, vocab_size=64, fingerprint=target_fingerprint(target), block_size=4
    )
    save_drafter(MedusaHead(config), rivals["medusa"])
    named = [word for name, folder in rivals.items() for word in ("--rival", f"{name}={folder}")]
    methods = "ar,sps,pld,lookahead,medusa,eagle,falcon"
    models = ("--model", target, "--drafter", drafter, *named, "--methods", methods)
    assert bench(*models, "--prompts", *prompts, "--max-tokens", "24", "--repeats", "1") == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(document["methods"]) == methods.split(",")
    for name, found in document["methods"].items():
        assert found["identical"] == 1.0, name
        assert name == "ar" or found["nodes"] > 1, name


def test_the_report_has_the_papers_tables(
    target: Path, drafter: Path, prompts: list[Path], tmp_path: Path
) -> None:
    report = tmp_path / "report"
    models = ["--model", target, "--drafter", drafter, "--methods", "ar,pld,falcon"]
    variants = ["--variant", f"no tree={drafter}:chain", "--variant", f"plain={drafter}:top-k"]
    variants += ["--variant", f"live={drafter}:served"]
    limits = ["--prompts", *prompts, "--max-tokens", "16", "--repeats", "1", "--warm-up", "0"]
    more = ["--report", report, "--temperatures", "0.7,1"]
    assert bench(*models, *variants, *limits, *more) == 0
    documents = json.loads((report / "report.json").read_text())
    assert [one["settings"]["temperature"] for one in documents] == [0.0, 0.7, 1.0]
    assert list(documents[0]["methods"]) == ["ar", "pld", "falcon", "no tree", "plain", "live"]
    assert list(documents[1]["methods"]) == ["ar", "falcon", "plain", "live"]
    for document in documents:
        assert all(own["identical"] == 1.0 for own in document["methods"].values())
    first = documents[0]["methods"]
    assert first["no tree"]["nodes"] == 1 + TREE.chain().max_depth < first["falcon"]["nodes"]
    assert first["plain"]["tau"] == first["falcon"]["tau"]  # without noise they are the same
    text = (report / "report.md").read_text()
    falcon = first["falcon"]
    for cell in (f"{falcon['speedup']:.2f}x", f"{falcon['tau']:.2f}", f"{falcon['alpha']:.1%}"):
        assert cell in text
    headings = ("first", "second", "all", "Falcon over it", "no tree", "T 0.7", "16 nodes")
    assert all(heading in text for heading in headings)
    assert (report / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_line_is_one_document_with_every_figure(
    target: Path, drafter: Path, prompts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    picture = drafter / "speed.png"
    arguments = ["--model", target, "--drafter", drafter, "--prompts", *prompts]
    limits = ["--max-tokens", "24", "--dtype", "float32", "--repeats", "2"]
    assert bench(*arguments, *limits, "--plot", picture) == 0
    output = capsys.readouterr().out
    found = json.loads(output.splitlines()[-1])

    assert MACHINE_KEYS | {"peak_memory_mb"} <= found["machine"].keys()
    assert found["prompts"] == 3
    assert found["settings"]["max_tokens"] == 24
    assert found["notes"] == ["1 prompts left out: too long for the context with max_tokens 24"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "first (2)" in output
    assert "all (3)" in output
    assert list(found["methods"]) == ["ar", "falcon", "hf"]
    for figures in found["methods"].values():
        assert figures["identical"] == 1.0
        assert figures["alpha"] == pytest.approx(figures["tau_0"] / figures["tau"], abs=1e-5)
        assert figures["tau"] * figures["steps"] == pytest.approx(
            figures["output_tokens"], abs=1e-3
        )
        parts = figures["per_file"]
        assert list(parts) == ["first", "second"]
        for name in ("output_tokens", "steps", "prompts"):
            assert sum(part[name] for part in parts.values()) == figures[name]
        assert sum(part["seconds"] for part in parts.values()) == pytest.approx(
            figures["seconds"], abs=1e-5
        )
    falcon = found["methods"]["falcon"]
    assert falcon["nodes"] == TREE.num_nodes
    assert falcon["steps"] < falcon["output_tokens"]
    assert found["methods"]["ar"]["nodes"] == 1.0
    assert found["methods"]["hf"]["ms"]["verify"] is None


def test_sampling_is_identical_too_but_hf_is_not_compared(
    target: Path, drafter: Path, prompts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", target, "--drafter", drafter, "--prompts", *prompts, "--limit", "1"]
    sampling = ["--temperature", "1", "--top-p", "0.9", "--top-k", "20", "--min-p", "0.01"]
    limits = ["--max-tokens", "16", "--dtype", "float32", "--repeats", "1", "--warm-up", "0"]
    assert bench(*arguments, *sampling, *limits) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["methods"]["falcon"]["identical"] == 1.0
    assert found["methods"]["hf"]["identical"] is None
    assert "hf samples with another random generator" in found["notes"][0]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--methods", "ar,hydra"], "unknown 'hydra'"),
        (["--methods", "ar,eagle"], "eagle needs --rival eagle=DIR"),
        (["--rival", "hydra=x"], "expected METHOD=DIR"),
        (["--rival", "eagle=/nowhere"], "no config.json"),
        (["--variant", "ar=/nowhere"], "each name once"),
        (["--methods", "ar", "--temperatures", "1"], "needs --report"),
        (["--methods", "ar,pld", "--report", "x"], "--report needs ar and falcon"),
        (["--methods", "ar", "--temperatures", "hot"], "expected numbers"),
        (["--methods", "ar,ar"], "names a method twice"),
        (["--methods", "falcon"], "falcon needs --drafter"),
        (["--methods", "ar", "--max-tokens", "0"], "--max-tokens must be at least 1, not 0"),
        (["--methods", "ar", "--top-p", "0"], "--top-p 0.0 must be above 0"),
        (["--methods", "ar", "--prompts", "nowhere.jsonl"], "there is no such file"),
        (["--methods", "ar", "--plot", "picture.jpg"], "must be a .png file"),
        (["--methods", "ar", "--max-tokens", "128"], "none of 24 prompts"),
    ],
)
def test_a_wrong_command_line_gets_one_line_and_status_2(
    words: list[str], complaint: str, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--model", target, *words) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.err.startswith("falcon bench: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_drafter_of_another_target_is_refused(
    target: Path, tmp_path: Path, prompts: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_random_drafter(target, tmp_path / "stranger", fingerprint="of another")
    arguments = ["--model", target, "--drafter", tmp_path / "stranger", "--prompts", *prompts]
    assert bench(*arguments, "--max-tokens", "8") == 2
    assert "made for another target; fingerprint" in capsys.readouterr().err


def test_who_is_told_guesses(target: Path, tmp_path: Path) -> None:
    """Not speculative sampling as it was published, and nobody who is asked for without."""
    coupled = save_random_drafter(target, tmp_path / "coupled", TREE, coupled=True)
    small = save_random_target(llama(layers=1), tmp_path / "small")
    settings = Settings(
        target,
        coupled,
        ("ar", "sps", "falcon"),
        (),
        dtype="float32",
        rivals=parse_rivals([f"sps={small}"]),
        variants=parse_variants([f"model={small}", f"without={coupled}:unguessed"]),
    )
    methods = load_methods(settings, Task(8, GREEDY, (END,)), context_length=64)
    drafters = {
        method.name: method.engine.decoder.drafter
        for method in methods
        if isinstance(method, EngineMethod)
    }
    guessed = {name: own.takes_guesses for name, own in drafters.items() if own is not None}
    assert guessed == {"sps": False, "falcon": True, "model": True, "without": False}
