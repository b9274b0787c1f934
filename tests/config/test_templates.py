"""task.prompt as a template of the user's: what it writes, what is refused by which line; it runs no code."""

import pytest
import yaml

from distmeta.config import dump_config, load_config, make_config
from distmeta.config.templates import take_apart
from distmeta.errors import InputError

GOOD = "Question: {{ input }}\n{# the answer #}Answer: {{ target }}\n\n"


def prompt(value):
    return load_config("llm", ["model.pretrained=none", f"task.prompt={value}"]).task.prompt


def test_a_template_is_taken_apart_at_its_input_and_target():
    assert take_apart(GOOD) == ("Question: ", "\nAnswer: ", "\n\n")


def test_a_template_on_the_command_line_is_no_yaml_and_its_line_breaks_are_meant():
    assert prompt("Question: {{ input }}\\nAnswer: {{ target }}") == "Question: {{ input }}\nAnswer: {{ target }}"


def test_a_file_is_read_once_and_kept_in_the_configuration(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(GOOD)
    config = load_config("llm", ["model.pretrained=none", f"task.prompt={file}"])
    file.unlink()
    assert config.task.prompt == GOOD
    assert make_config(yaml.safe_load(dump_config(config))).task.prompt == GOOD


@pytest.mark.parametrize(
    ("template", "line"),
    [
        ("a\\n{{ inptu }}: {{ target }}", "line 2 of the template: 'inptu' is undefined; it may use input and target"),
        ("a\\n\\n{{ input", "line 3 of the template: unexpected end of template"),
        ("{{ input }}:\\n{% if %}{{ target }}", "line 2 of the template"),
        ("{{ input }}: ", "writes {{ target }} 0 times"),
        ("{{ input }}: {{ target }} {{ target }}", "writes {{ target }} 2 times"),
        ("{{ target }}: {{ input }}", "writes {{ target }} before {{ input }}"),
        ("{{ input }} {{ target }}", "nothing stands between {{ input }} and {{ target }}"),
        ("{{ input | upper }}: {{ target }}", "another text around another input"),
        ("{{ input }}: {{ target }}{% if input == '' %}!{% endif %}", "another text around another input"),
        ("no-such-file.jinja", "there is no such file"),
        ("plan", "there is no such file. Did you mean 'plain'?"),
        # nothing that a template may reach runs code, or reads a file
        ("{{ ''.__class__.__mro__ }}{{ input }}: {{ target }}", "'__class__' of 'str' object is unsafe"),
        ("{{ cycler.__init__.__globals__ }}{{ input }}: {{ target }}", "'__init__' of 'type' object is unsafe"),
        ("{% include '/etc/hostname' %}{{ input }}: {{ target }}", "no loader for this environment"),
        ("{{ lipsum.__globals__ }}{{ input }}: {{ target }}", "'__globals__' of 'function' object is unsafe"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_by_its_line(template, line):
    with pytest.raises(InputError) as refused:
        prompt(template)
    assert "task.prompt" in str(refused.value) and line in str(refused.value)
