"""The command line as a user meets it: exit codes, one-line errors, what lands on stdout and on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys.commands import MODEL, go_to

from ppl_align import __version__, gallery
from ppl_align.cli import main
from ppl_align.loading import load_model

ENGINES = {
    "few": "from ppl_align import ImportanceSampling\nengine = ImportanceSampling(num_particles=16)\n",
    "steered": "from ppl_align import SMC\nengine = SMC(num_particles=8, num_replicates=4, twist='prefix', every=1)\n",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return go_to(tmp_path, monkeypatch, toy=MODEL, **ENGINES)


BOTH = ["--engine", "few.py", "--engine", "steered.py"]


def rejected(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Runs it, expects nothing on stdout and one line on stderr; returns that line."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    return err


# -- what is rejected before anything runs ------------------------------------------------------------------


def test_models_that_cannot_be_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such model file: toi.py; did you mean 'toy.py'?" in rejected(capsys, "run", "toi.py", *BOTH)
    assert "did you mean the file 'toy.py'?" in rejected(capsys, "run", "toy", *BOTH)
    assert "did you mean 'positive_review'?" in rejected(capsys, "run", "positive_reviw", *BOTH)
    assert "no such module: nowhere" in rejected(capsys, "run", "nowhere.at_all:f", *BOTH)
    assert "did you mean 'toy'?" in rejected(capsys, "check", "toy.py:tyo")


def test_files_without_one_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "empty.py").write_text("from os.path import join\n_private = lambda: None\n")
    (here / "two.py").write_text("def a(): ...\ndef b(): ...\n")
    (here / "broken.py").write_text("x = 1\ny = x / 0\n")
    (here / "typo.py").write_text("def a(:\n")
    assert "empty.py defines no model" in rejected(capsys, "check", "empty.py")
    assert "several functions (a, b)" in rejected(capsys, "check", "two.py")
    assert "broken.py, line 2: ZeroDivisionError" in rejected(capsys, "check", "broken.py")
    assert "typo.py, line 1: SyntaxError" in rejected(capsys, "check", "typo.py")


def test_the_function_named_like_the_file_is_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text(MODEL + "\n\ndef helper():\n    return 1\n")
    assert main(["check", "toy.py"]) == 0
    assert main(["check", "toy.py:toy"]) == 0
    assert "toy runs" in capsys.readouterr().err


def test_unknown_engines_and_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> str:
        return rejected(capsys, "run", "toy.py", *argv)

    assert "did you mean 'importance'?" in run("--engine", "importnce")
    assert "no such engine file: fw.py; did you mean 'few.py'?" in run("--engine", "fw.py")
    assert "defines no `engine`" in run("--engine", "toy.py")
    assert "two engines are called 'few'" in run("--engine", "few.py", "--engine", "few.py")
    assert "did you mean 'num_particles'?" in run(*BOTH, "--set", "few.num_particle=3")
    assert "no such engine in this run; did you mean 'steered'?" in run(*BOTH, "--set", "steerd.num_particles=3")
    assert "num_particles must be" in run(*BOTH, "--set", "few.num_particles=0")
    assert "must be a whole number, got 'many'" in run(*BOTH, "--set", "few.num_particles=many")
    assert "did you mean 'systematic'" in run(*BOTH, "--set", "steered.resampling=sistematic")
    assert "--engine" in run("--engin", "few.py")
    (here / "odd.py").write_text("engine = 'smc'\n")
    assert "`engine` is a str, not an engine" in run("--engine", "odd.py")


def test_bad_model_arguments(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*argv: str) -> str:
        return rejected(capsys, "run", "toy.py", *BOTH, *argv)

    assert "did you mean 'bias'?" in run("--set", "bais=1")
    assert "--set bias must be a number, got 'much'" in run("--set", "bias=much")
    assert "--set wants key=value, got 'bias'" in run("--set", "bias")
    assert "--set bias is given twice" in run("--set", "bias=1", "--set", "bias=2")
    assert "not both" in run("--prompt", "0", "--set", "prompt=1")
    assert "--seed" in run("--seed", "-1")
    (here / "toy.py").write_text(MODEL.replace('prompt: str = "0"', "prompt"))
    assert "needs a value for 'prompt'" in run()
    (here / "toy.py").write_text(MODEL.replace('prompt: str = "0", ', "").replace("_lm, prompt", '_lm, "0"'))
    assert "has no argument 'prompt'" in run("--prompt", "0")


def test_a_prompt_the_model_cannot_start_from_is_the_users_to_mend(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "has no words" in rejected(capsys, "run", "toy.py", *BOTH, "--prompt", "hello")
    assert "has no words" in rejected(capsys, "check", "toy.py", "--set", "prompt=hello")


def test_output_folders_that_cannot_be_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = here / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep me")
    run = ["run", "toy.py", *BOTH, "--out"]
    assert "not empty" in rejected(capsys, *run, "full")
    assert "is a file" in rejected(capsys, *run, "toy.py")
    assert "cannot write" in rejected(capsys, *run, "toy.py/below")
    rejected(capsys, "run", "toi.py", "--out", "never")
    assert not (here / "never").exists()


def test_bad_data_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "no.jsonl": ('{"text": "0"}\n', "row 0: there is no column 'prompt'; the only column is 'text'"),
        "half.jsonl": ('{"prompt": "0"}\n{"prompt"\n', "line 2: not JSON"),
        "list.jsonl": ("[1]\n", "one object a line"),
        "null.jsonl": ('{"prompt": null}\n', "row 0: the prompt is None"),
        "empty.csv": ("prompt\n", "has no rows"),
        "ragged.csv": ("prompt,bias\n0\n", "as many cells as the header"),
        "twice.csv": ("prompt,bias,bias\n0,1,2\n", "there are two columns 'bias'"),
        "twice.jsonl": ('{"prompt": "0"}\n{"prompt": "0", "prompt": "1"}\n', "line 2: there are two columns 'prompt'"),
        "words.csv": ("prompt,bias\n0,much\n", "row 0: bias must be a number"),
        "junk.parquet": ("not parquet", "not a Parquet file"),
        "prompts.txt": ("0\n", "write a .jsonl, .csv or .parquet file"),
    }
    for name, (text, said) in files.items():
        (here / name).write_text(text)
        assert said in rejected(capsys, "run", "toy.py", *BOTH, "--data", name)
    assert "no such data file" in rejected(capsys, "run", "toy.py", *BOTH, "--data", "gone.csv")
    assert "not both" in rejected(capsys, "run", "toy.py", *BOTH, "--data", "no.jsonl", "--prompt", "0")


# -- runs -------------------------------------------------------------------------------------------------------


def test_a_run_prints_saves_and_can_be_compared_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "toy.py", *BOTH, "--out", "out", "--set", "bias=0.5", "--set", "few.num_particles=8"]) == 0
    out, err = capsys.readouterr()
    assert "few" in out
    assert "steered" in out
    assert "few: done" in err
    names = {"few.nc", "steered.nc", "comparison.csv", "comparison.json", "report.html", "run.json"}
    assert {p.name for p in (here / "out").iterdir()} == names
    manifest = json.loads((here / "out/run.json").read_text())
    assert manifest["args"] == ["0", 0.5]
    assert "num_particles=8" in manifest["engines"]["few"]
    assert main(["compare", "out", "--json"]) == 0
    out, _ = capsys.readouterr()
    assert set(json.loads(out)["runs"]) == {"few", "steered"}
    assert main(["compare", "out/few.nc", "--out", "again"]) == 0
    assert (here / "again/report.html").is_file()
    assert "holds what is compared" in rejected(capsys_cleared(capsys), "compare", "out", "--out", "out", "--force")


def capsys_cleared(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    capsys.readouterr()
    return capsys


def test_same_seed_same_result_and_json_alone_on_stdout(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text("print('loading')\n" + MODEL.replace("    x =", "    print('noise')\n    x ="))

    def result(seed: str) -> dict:
        assert main(["run", "toy.py", *BOTH, "--json", "--seed", seed]) == 0
        out, err = capsys.readouterr()
        assert "noise" in err
        return json.loads(out)["runs"]["few"]

    first, same, other = result("1"), result("1"), result("2")
    assert first["log_evidence"] == same["log_evidence"] != other["log_evidence"]


def test_force_replaces_our_files_and_no_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "toy.py", *BOTH, "--out", "out"]) == 0
    (here / "out/mine.txt").write_text("keep me")
    assert "not empty" in rejected(capsys_cleared(capsys), "run", "toy.py", *BOTH, "--out", "out")
    assert main(["run", "toy.py", "--engine", "few.py", "--out", "out", "--force"]) == 0
    assert (here / "out/mine.txt").read_text() == "keep me"
    assert not (here / "out/steered.nc").exists()
    (here / "elsewhere.nc").write_text("not ours")
    (here / "out/run.json").write_text(json.dumps({"files": ["../elsewhere.nc", "../toy.py"]}))
    assert main(["run", "toy.py", "--engine", "few.py", "--out", "out", "--force"]) == 0
    assert (here / "elsewhere.nc").exists()
    assert (here / "toy.py").exists()


# -- runs that go wrong --------------------------------------------------------------------------------------------


def test_a_reward_that_raises_is_a_failed_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text(
        MODEL.replace(
            'reward("ones", lambda tokens: bias * (tokens == 1).double().sum(-1), x.tokens)', 'reward("ones", _bad, x)'
        )
        + "\n\ndef _bad(texts):\n    raise KeyError('lost')\n"
    )
    assert "ones" in rejected(capsys, "run", "toy.py", *BOTH, code=1)
    assert "ones" in rejected(capsys, "check", "toy.py", code=1)
    assert main(["run", "toy.py", *BOTH, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_in_the_model_points_at_its_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").write_text(MODEL.replace("    return x", "    return x + None.y"))
    line = MODEL.splitlines().index("    return x") + 1
    assert f"error: toy.py, line {line}: AttributeError" in rejected(capsys, "run", "toy.py", *BOTH, code=1)


def _break(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From here on SMC raises when it starts."""
    from ppl_align import SMC

    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(SMC, "run", run)


def test_ctrl_c_keeps_what_was_finished(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _break(monkeypatch, KeyboardInterrupt())
    assert main(["run", "toy.py", *BOTH, "--out", "out", "--json"]) == 130
    out, err = capsys.readouterr()
    assert set(json.loads(out)["runs"]) == {"few"}
    assert "interrupted: 1 of 2 runs were finished and are kept" in err
    assert {p.name for p in (here / "out").glob("*.nc")} == {"few.nc"}
    assert json.loads((here / "out/comparison.json").read_text())["runs"].keys() == {"few"}
    assert not list((here / "out").glob(".partial*"))
    assert main(["run", "toy.py", "--engine", "steered.py", "--json"]) == 130
    assert capsys.readouterr().out == ""


def test_ctrl_c_before_the_first_run_says_so_too(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "toy.py").write_text("raise KeyboardInterrupt\n")  # while the model is loaded
    for command in ("run", "check"):
        assert main([command, "toy.py"]) == 130
        assert capsys.readouterr() == ("", "interrupted\n")


def test_a_late_failure_keeps_what_was_finished(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppl_align.core.errors import AllDeadError, InputError

    for error in (AllDeadError("all dead"), InputError("cannot do this"), RuntimeError("surprise")):
        _break(monkeypatch, error)
        assert main(["run", "toy.py", *BOTH, "--out", "out", "--force", "--json"]) == 1
        out, err = capsys.readouterr()
        assert set(json.loads(out)["runs"]) == {"few"}
        assert str(error) in err
        assert (here / "out/few.nc").is_file()
    assert "internal error: RuntimeError: surprise" in err
    _break(monkeypatch, AllDeadError("all dead"))
    assert main(["run", "toy.py", "--engine", "steered.py", "--engine", "few.py", "--json"]) == 1
    assert set(json.loads(capsys.readouterr().out)["runs"]) == {"few"}


def test_files_that_are_no_posteriors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import xarray

    assert main(["run", "toy.py", "--engine", "few.py", "--out", "out"]) == 0
    whole = (here / "out/few.nc").read_bytes()
    (here / "cut.nc").write_bytes(whole[: len(whole) // 2])
    (here / "text.nc").write_text("hello")
    xarray.Dataset({"a": ("b", [1, 2])}).to_netcdf(here / "foreign.nc", engine="h5netcdf")
    (here / "empty").mkdir()
    for name in ("cut.nc", "text.nc", "foreign.nc"):
        assert name in rejected(capsys_cleared(capsys), "compare", "out", name)
    assert "holds no .nc file" in rejected(capsys, "compare", "empty")
    assert "no such file or folder" in rejected(capsys, "compare", "gone.nc")


# -- the small commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--version", "-h"])
def test_what_needs_no_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert out == f"{__version__}\n" if flag == "--version" else "Usage: ppl-align" in out


def test_help_offers_what_a_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for command, offered in (("run", True), ("check", True), ("inspect", False)):
        assert main([command, "--help"]) == 0
        assert ("engine.key=value" in capsys.readouterr().out) == offered


def test_galleries_are_listed_without_being_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert main(["engines"]) == 0
    out, _ = capsys.readouterr()
    for kind in ("models", "inference"):
        for entry in gallery.entries(kind):
            assert entry.name in out
            assert len(entry.summary) > 10, f"{entry.path} needs a docstring that says what it is"


def test_every_recipe_is_an_engine() -> None:
    from ppl_align.loading import load_engine

    recipes = {entry.name: load_engine(entry.name) for entry in gallery.entries("inference")}
    steering = {"smc", "smc_every_token", "smc_lookahead", "smc_power", "smc_rejuvenated", "smc_tempered"}
    moving = {"mcmc", "particle_gibbs", "tempered"}
    assert set(recipes) == {"exact", "importance", "nested", "rejection", "svi", *steering, *moving}
    assert all(name.startswith(recipe.engine.name) for name, recipe in recipes.items())


def test_new_starts_a_project(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "mine"]) == 0
    assert (here / "mine/README.md").is_file()
    assert len(list((here / "mine").glob("*/*.py"))) == 2
    assert "not empty" in rejected(capsys_cleared(capsys), "new", "mine")


def test_fetch_knows_two_things(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'smollm2-135m'?" in rejected(capsys, "fetch", "smollm2")


def test_the_installed_command_and_its_exit_code(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "import sys; from ppl_align.cli import main; sys.exit(main())"]
    done = subprocess.run([*command, "rn"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'run'" in done.stderr.lower()
    assert main(["--help"]) == 0
    assert "compare" in capsys.readouterr().out
    done = subprocess.run(
        [*command, "run", "toy.py", "--engine", "few.py", "--out", "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (here / "out/few.nc").is_file()


def test_the_model_of_a_file_is_the_one_function_that_writes(here: Path) -> None:
    (here / "script.py").write_text(
        "from ppl_align import completion\n"
        "def good(texts):\n    return [0.0 for _ in texts]\n"
        "def write():\n    return completion('x', None)\n",
        encoding="utf-8",
    )
    assert load_model("script.py").__name__ == "write"
