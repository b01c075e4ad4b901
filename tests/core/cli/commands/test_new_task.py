"""`gptask new-task`: its output and its refusals."""


def test_files_and_the_next_steps_are_printed(run_command, tmp_path):
    ended = run_command("new-task", "toxicity", "my acme")
    assert (ended.code, ended.err) == (0, "")
    files, steps = ended.out.split("\n\n")
    assert "my acme/toxicity/__init__.py" in files.splitlines()
    assert all((tmp_path / file).is_file() for file in files.splitlines())
    assert steps == "pip install -e 'my acme[dev]'\ngptask train task=toxicity\npytest 'my acme'\n"


def test_kind_chooses_the_template(run_command, tmp_path):
    assert run_command("new-task", "headline", "news", "--kind", "generation").code == 0
    assert "GenerativeTask" in (tmp_path / "news/headline/__init__.py").read_text()


def test_help_lists_the_kinds(run_command):
    ended = run_command("new-task", "--help")
    assert ended.code == 0
    assert "--kind {classification,generation}" in ended.out


def test_invalid_arguments_are_refused_and_nothing_is_written(refused, tmp_path):
    assert "required: folder" in refused("new-task", "toxicity")
    assert "Did you mean 'toxicity'?" in refused("new-task", "Toxicity", "acme")
    assert "is installed (gptask)" in refused("new-task", "qa", "acme")
    assert "invalid choice: 'song'" in refused("new-task", "toxicity", "acme", "--kind", "song")
    assert not (tmp_path / "acme").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").touch()
    assert "name a new one" in refused("new-task", "toxicity", "full")
