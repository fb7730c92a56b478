"""Templates render as the `transformers` library renders them, and a hostile one ends soon."""

import concurrent.futures
import json
import time
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

import penstock.bundled
from penstock.core.errors import InvalidRequest
from penstock.text.chat_template import FUEL_STEPS, MAX_OUTPUT_CHARS, ChatTemplate
from penstock.text.tokenizer import SpecialTokens

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}
{% set content = bos_token + content %}{% endif %}
{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

' }}{% endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{#- System messages are taken apart first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim -}}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
           and not(message.content.startswith('<tool_response>')
           and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') -}}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' }}
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}
{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}
{% endif %}{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

PARTS_ONLY = """{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{% if part.type == 'text' %}
{% generation %}{{ part.text }}{% endgeneration %}{% endif %}{% endfor %}{% endfor %}"""

TOOLS_JSON = "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}"

TEMPLATES = {
    "chatml": CHATML,
    "llama 3": LLAMA3,
    "llama 3.1": LLAMA31,
    "mistral": MISTRAL,
    "qwen 3": QWEN3,
    "gemma": GEMMA,
    "json": TOOLS_JSON,
}
SPECIAL = SpecialTokens(bos="<s>", eos="</s>", pad="<pad>")
CHATS = {
    "one": [{"role": "user", "content": "  Hello, <world> & 'you' 你好 🙂 \n"}],
    "turns": [
        {"role": "user", "content": "What is 1 + 1?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
        {"role": "user", "content": "And\n\ntwice that?"},
    ],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
}


def theirs(template: str, messages: list[dict], **options: object) -> str:
    """What transformers makes of it: the function beneath `apply_chat_template`."""
    rendered, _ = render_jinja_template(
        [messages], chat_template=template, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )
    return rendered[0]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_published_templates_render_as_in_transformers(name, chat, add_generation_prompt):
    template, messages = TEMPLATES[name], CHATS[chat]
    try:
        expected = theirs(template, messages, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateError as refusal:
        with pytest.raises(InvalidRequest, match=str(refusal).split("!", maxsplit=1)[0][:30]):
            ChatTemplate(template, SPECIAL).render(messages, add_generation_prompt=add_generation_prompt)
        return
    ours = ChatTemplate(template, SPECIAL).render(messages, add_generation_prompt=add_generation_prompt)
    assert ours == expected


def test_the_bundled_template_renders_as_in_transformers():
    folder = Path(penstock.bundled.__file__).parent / "penstock-tiny"
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    for messages in CHATS.values():
        expected = theirs(template, messages, add_generation_prompt=True)
        assert ChatTemplate(template).render(messages) == expected


def test_tool_calls_of_earlier_turns_render_as_in_transformers():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [None, True, "<é>"]}}}
    messages = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    assert ChatTemplate(LLAMA31, SPECIAL).render(messages) == theirs(LLAMA31, messages, add_generation_prompt=True)


def test_options_reach_the_template():
    template = ChatTemplate(QWEN3, SPECIAL)
    plain = template.render(CHATS["one"])
    assert template.render(CHATS["one"], options={"enable_thinking": False}) == plain + "<think>\n\n</think>\n\n"


def test_today_comes_from_the_clock_that_was_handed_in():
    template = ChatTemplate(LLAMA31, SPECIAL, now=lambda: datetime(2031, 5, 4))
    assert "Today Date: 04 May 2031" in template.render(CHATS["one"])


PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]


def test_parts_become_a_string_where_the_template_expects_one():
    as_string = [{"role": "user", "content": "one\ntwo"}]
    for name in ("chatml", "llama 3", "mistral", "qwen 3"):
        template = ChatTemplate(TEMPLATES[name], SPECIAL)
        assert template.render(PARTS) == template.render(as_string)


def test_parts_stay_parts_where_the_template_reads_them():
    assert ChatTemplate(GEMMA, SPECIAL).render(PARTS) == theirs(GEMMA, PARTS, add_generation_prompt=True)
    assert ChatTemplate(PARTS_ONLY).render(PARTS) == "[user]onetwo"


def test_a_string_becomes_a_part_where_the_template_reads_only_parts():
    assert ChatTemplate(PARTS_ONLY).render(CHATS["system"]) == "[system]Be brief.[user]Hi"


def test_a_model_without_a_template_says_so():
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate(None).render(CHATS["one"])


def test_a_template_that_does_not_compile_says_so():
    template = ChatTemplate("{% if x %}")
    assert "cannot be compiled" in template.problem
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        template.render(CHATS["one"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles\nmust alternate') }}", "refuses the messages: roles must alternate"),
        ("{{ messages[0].nothing.at.all }}", "cannot render"),
        ("{{ 1 // 0 }}", "cannot render"),
        ("{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}", f"more than {FUEL_STEPS}"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot render|more than"),
        ("{{ 'a' * 5000000 }}", f"at most {MAX_OUTPUT_CHARS}"),
        ("{{ messages.__class__.__mro__ }}", "cannot render"),
        ("{% include 'other' %}", "cannot render"),
        ("{{ messages.__getattribute__('__class__') }}", "cannot render"),
        ("{{ messages.remove(5) }}", r"cannot render these messages \(ValueError\)"),
    ],
)
def test_a_template_that_fails_is_the_answer_to_one_request(source, message):
    template = ChatTemplate(source)
    start_s = time.perf_counter()
    with pytest.raises(InvalidRequest, match=message) as caught:
        template.render(CHATS["one"])
    assert time.perf_counter() - start_s < 5.0
    assert len(str(caught.value)) < 400
    assert caught.value.param == "messages"


def test_several_threads_may_render_at_once():
    template = ChatTemplate(LLAMA3, SPECIAL)
    expected = template.render(CHATS["turns"])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: template.render(CHATS["turns"]), range(200))) == {expected}
