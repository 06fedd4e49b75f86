"""Chat templates that behave as those of today's families: the same tokens around the same turns, in words of our own.

Texts that a template says by itself (a default system turn, what tools are for) are shortened.
"""

import functools

from tests.tiny.chat_templates import GEMMA, MISTRAL, ZEPHYR, build

CHATML_TURN = "'<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n'"
TOOL_LIST = "{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}"
CALLS = (
    "{% for call in turn.tool_calls or [] %}{% set call = call.function or call %}"
    '{{ \'\\n<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' + (call.arguments if call.arguments is string '
    "else call.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}"
)
TOOL_TURN = (
    "{% if loop.previtem is undefined or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + turn.content + '\\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
)

# A system turn with tools, or the system turn alone; {default} where neither is given.
QWEN_HEAD = (
    "{{%- set own = messages[0].content if messages[0].role == 'system' else '{default}' %}}"
    "{{%- if tools %}}{{{{- '<|im_start|>system\\n' + own + ('\\n\\n' if own else '') + '# Tools\\n<tools>' }}}}"
    + TOOL_LIST.replace("{", "{{").replace("}", "}}")
    + "{{{{- '\\n</tools><|im_end|>\\n' }}}}"
    "{{%- elif own %}}{{{{- '<|im_start|>system\\n' + own + '<|im_end|>\\n' }}}}{{%- endif %}}"
)
QWEN_25 = (
    QWEN_HEAD.format(default="You are a default.") + "{%- for turn in messages %}"
    "{%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}{{- " + CHATML_TURN + " }}"
    "{%- elif turn.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if turn.content %}{{- '\\n' + turn.content }}{%- endif %}" + CALLS + "{{- '<|im_end|>\\n' }}"
    "{%- elif turn.role == 'tool' %}" + TOOL_TURN + "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def qwen_3(after_header: str) -> str:
    """Thoughts are kept after the last question of the user, where an answer without one has an empty one."""
    return (
        QWEN_HEAD.format(default="") + "{%- set last = namespace(question=messages | length - 1, sought=true) %}"
        "{%- for turn in messages[::-1] %}{%- if last.sought and turn.role == 'user' and not "
        "(turn.content.startswith('<tool_response>') and turn.content.endswith('</tool_response>')) %}"
        "{%- set last.sought = false %}{%- set last.question = messages | length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for turn in messages %}"
        "{%- if turn.role == 'user' or (turn.role == 'system' and not loop.first) %}{{- " + CHATML_TURN + " }}"
        "{%- elif turn.role == 'assistant' %}"
        "{%- set said, thought = turn.content, '' %}"
        "{%- if turn.reasoning_content is string %}{%- set thought = turn.reasoning_content %}"
        "{%- elif '</think>' in said %}"
        "{%- set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\\n' }}"
        "{%- if loop.index0 > last.question and (loop.last or thought) %}"
        "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}"
        "{%- else %}{{- said }}{%- endif %}" + CALLS + "{{- '<|im_end|>\\n' }}"
        "{%- elif turn.role == 'tool' %}" + TOOL_TURN + "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}" + after_header + "{%- endif %}"
    )


QWEN_3 = qwen_3(
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)
QWEN_3_THINKING_2507 = qwen_3("{{- '<think>\\n' }}")
QWEN_3_INSTRUCT_2507 = QWEN_HEAD.format(default="") + QWEN_25.removeprefix(
    QWEN_HEAD.format(default="You are a default.")
)

# A system turn heads the first turn of the user; roles must alternate; a content may be a list of parts.
GEMMA_3 = """{{ bos_token }}
{%- set head = '' %}{% set turns = messages %}
{%- if messages[0].role == 'system' %}
    {%- set head = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' + (head if loop.first else '') }}
    {%- if turn.content is string %}{{- turn.content | trim }}
    {%- else %}{%- for part in turn.content %}
        {{- '<start_of_image>' if part.type == 'image' else part.text | trim }}{%- endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}
"""

# bos is eos, headers are plain text; no line feed follows the last answer.
OLMO_2 = (
    "{{ bos_token }}{% for turn in messages %}{{ '<|' + turn.role + '|>\\n' + turn.content }}"
    "{% if turn.role != 'assistant' %}{{ '\\n' }}{% else %}{{ eos_token + ('' if loop.last else '\\n') }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)


def olmo_3(default: str, header: str) -> str:
    """Says in every system turn whether there are functions."""
    none = "You do not currently have access to any functions."
    return (
        "{%- set own = messages | selectattr('role', 'equalto', 'system') | list %}"
        "{%- if not own %}{{- '<|im_start|>system\\n"
        + default
        + " "
        + none
        + " <functions></functions><|im_end|>\\n' }}"
        "{%- endif %}{%- for turn in messages %}"
        "{%- if turn.role == 'system' %}{{- '<|im_start|>system\\n' + turn.content }}"
        "{%- if turn.functions %}{{- ' <functions>' + turn.functions + '</functions>' }}"
        "{%- else %}{{- ' " + none + " <functions></functions>' }}{%- endif %}{{- '<|im_end|>\\n' }}"
        "{%- elif turn.role == 'user' %}{{- " + CHATML_TURN + " }}"
        "{%- elif turn.role == 'assistant' %}{{- '<|im_start|>assistant\\n' + turn.content }}"
        "{{- eos_token if loop.last else '<|im_end|>\\n' }}{%- endif %}"
        "{%- if loop.last and add_generation_prompt %}{{- '<|im_start|>assistant\\n"
        + header
        + "' }}{%- endif %}{%- endfor %}"
    )


OLMO_3_INSTRUCT = olmo_3("You are a default.", "")
OLMO_3_THINK = olmo_3("You are a default. Your date cutoff is November 2024.", "<think>")

# eos follows a whole conversation, which has no header of an assistant.
PHI_3 = (
    "{% for turn in messages %}{{ '<|' + turn.role + '|>\\n' + turn.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The header belongs to the user's turn; a system turn is left out without a word.
PHI_3_MEDIUM = (
    "{% for turn in messages %}{% if turn.role == 'user' %}{{ '<|user|>\\n' + turn.content + '<|end|>\\n<|assistant|>\\n' }}"
    "{% elif turn.role == 'assistant' %}{{ turn.content + '<|end|>\\n' }}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '<|im_sep|>' + turn.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# Tools are a key of the system turn.
PHI_4_MINI = (
    "{% for turn in messages %}{{ '<|' + turn.role + '|>' + turn.content }}"
    "{% if turn.role == 'system' and turn.tools %}{{ '<|tool|>' + turn.tools + '<|/tool|>' }}{% endif %}{{ '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

# A default system turn with the date, other words where there are tools or documents or a wish to think; controls are
# written into the header of the answer to come.
GRANITE_3 = """
{%- if messages[0].role == 'system' %}{% set head = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}
    {%- set head = "Knowledge Cutoff Date: April 2024.\\nToday's Date: " + strftime_now('%B %d, %Y') + ".\\nYou are a default." %}
    {%- if tools and documents %}{% set head = head + ' Use tools and documents.' %}
    {%- elif tools %}{% set head = head + ' Use tools.' %}
    {%- elif documents %}{% set head = head + ' Use documents.' %}
    {%- elif thinking %}{% set head = head + ' Think first, between <think></think>.' %}{% endif %}
    {%- if 'citations' in controls and documents %}{% set head = head + ' Cite.' %}{% endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + head + '<|end_of_text|>\\n' }}
{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}{% endif %}
{%- for document in documents or [] %}
    {{- '<|start_of_role|>document {"document_id": "' + document.doc_id | string + '"}<|end_of_role|>\\n' + document.text }}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{%- for turn in turns %}
    {{- '<|start_of_role|>' + turn.role + '<|end_of_role|>' + turn.content + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' + (' ' + controls | tojson if controls else '') + '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}
"""

# Always a system turn, with the date; /think and /no_think in it decide, else enable_thinking; answers are marked.
SMOLLM_3 = """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set mode = '/think' if enable_thinking else '/no_think' %}
{%- set own = messages[0].content if messages[0].role == 'system' else '' %}
{%- if '/no_think' in own %}{% set mode = '/no_think' %}{% elif '/think' in own %}{% set mode = '/think' %}{% endif %}
{%- set own = own.replace('/no_think', '').replace('/think', '').rstrip() %}
{{- '<|im_start|>system\\n' }}
{%- if '/system_override' in own %}{{- own.replace('/system_override', '').rstrip() }}
{%- else %}
    {{- '## Metadata\\n\\nKnowledge Cutoff Date: June 2025\\nToday Date: ' + strftime_now('%d %B %Y') }}
    {{- '\\nReasoning Mode: ' + mode + '\\n\\n## Custom Instructions\\n\\n' }}
    {{- own if own else 'You are a default.' + (' Think.' if mode == '/think' else '') }}{{- '\\n\\n' }}
    {%- if xml_tools or python_tools or tools %}
        {{- '### Tools\\n\\n' }}
        {%- for tool in xml_tools or python_tools or tools %}{{- tool | string + '\\n' }}{% endfor %}
    {%- endif %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for turn in messages %}
    {%- if turn.role == 'user' %}{{- '<|im_start|>user\\n' + turn.content + '<|im_end|>\\n' }}
    {%- elif turn.role == 'assistant' %}
        {%- generation %}
        {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
        {{- turn.content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif turn.role == 'tool' %}{{- '<|im_start|>user\\n' + turn.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' + ('' if mode == '/think' else '<think>\\n\\n</think>\\n') }}
{%- endif %}
"""


def mistral(written_at: str, before: str, answer: str) -> str:
    """A system turn is written into a turn of the user; tools before the last one; calls need an id of nine characters."""
    return (
        "{%- if messages[0].role == 'system' %}{% set head, turns = messages[0].content, messages[1:] %}"
        "{%- else %}{% set turns = messages %}{% endif %}"
        "{%- if not tools is defined %}{% set tools = none %}{% endif %}"
        "{%- set asked = turns | selectattr('role', 'equalto', 'user') | list %}"
        "{%- set seen = namespace(index=0) %}{%- for turn in turns %}"
        "{%- if not (turn.role in ('tool', 'tool_results') or turn.tool_calls is defined and turn.tool_calls is not none) %}"
        "{%- if (turn.role == 'user') != (seen.index % 2 == 0) %}"
        "{{- raise_exception('After an optional system turn, roles must alternate user/assistant') }}{%- endif %}"
        "{%- set seen.index = seen.index + 1 %}{%- endif %}{%- endfor %}"
        "{{- bos_token }}{%- for turn in turns %}{%- if turn.role == 'user' %}"
        "{%- if tools is not none and turn == asked[-1] %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}"
        "{%- endif %}{{- '[INST]" + before + "' + (head + '\\n\\n' if head is defined and " + written_at + " else '') "
        "+ turn.content + '[/INST]' }}"
        "{%- elif turn.tool_calls is defined and turn.tool_calls is not none %}{{- '[TOOL_CALLS][' }}"
        "{%- for call in turn.tool_calls %}"
        "{%- if call.id is undefined or call.id | length != 9 %}{{- raise_exception('A call needs an id of 9 characters') }}"
        "{%- endif %}{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' + ('' if loop.last else ', ') }}"
        "{%- endfor %}{{- ']' + eos_token }}"
        "{%- elif turn.role == 'assistant' %}{{- " + answer + " + eos_token }}"
        "{%- elif turn.role in ('tool', 'tool_results') %}{{- '[TOOL_RESULTS]' + turn.content + '[/TOOL_RESULTS]' }}"
        "{%- else %}{{- raise_exception('Only user, assistant and tool turns are known') }}{%- endif %}{%- endfor %}"
    )


MISTRAL_02 = mistral("loop.first", " ", "' ' + turn.content")
MISTRAL_03 = mistral("loop.last", " ", "' ' + turn.content | trim")
MISTRAL_NEMO = mistral("loop.last", "", "turn.content")
# A system turn of its own, with a default that says the date.
MISTRAL_SMALL = (
    "{%- set default = 'You are a default. The current date is ' + strftime_now('%Y-%m-%d') + '.' %}{{- bos_token }}"
    "{%- if messages[0].role == 'system' %}{% set head, turns = messages[0].content, messages[1:] %}"
    "{%- else %}{% set head, turns = default, messages %}{% endif %}"
    "{{- '[SYSTEM_PROMPT]' + head + '[/SYSTEM_PROMPT]' }}{%- for turn in turns %}"
    "{%- if turn.role == 'user' %}{{- '[INST]' + turn.content + '[/INST]' }}"
    "{%- elif turn.role == 'system' %}{{- '[SYSTEM_PROMPT]' + turn.content + '[/SYSTEM_PROMPT]' }}"
    "{%- elif turn.role == 'assistant' %}{{- turn.content + eos_token }}"
    "{%- else %}{{- raise_exception('Only user, system and assistant turns are known') }}{%- endif %}{%- endfor %}"
)


def llama(date: str) -> str:
    """Always a system turn, with two dates; tools stand in the first turn of the user."""
    header = "'<|start_header_id|>' + {} + '<|end_header_id|>\\n\\n'"
    return (
        "{{- bos_token }}{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}"
        "{%- if not tools_in_user_message is defined %}{% set tools_in_user_message = true %}{% endif %}"
        "{%- if not date_string is defined %}"
        + date
        + "{% endif %}{%- if not tools is defined %}{% set tools = none %}{% endif %}"
        "{%- if messages[0].role == 'system' %}{% set own = messages[0].content | trim %}{% set messages = messages[1:] %}"
        "{%- else %}{% set own = '' %}{% endif %}"
        "{{- " + header.format("'system'") + " }}"
        "{%- if builtin_tools is defined or tools is not none %}{{- 'Environment: ipython\\n' }}{% endif %}"
        "{{- 'Cutting Knowledge Date: December 2023\\nToday Date: ' + date_string + '\\n\\n' }}"
        "{%- if tools is not none and not tools_in_user_message %}{{- 'Tools:' }}" + TOOL_LIST + "{% endif %}"
        "{{- own + '<|eot_id|>' }}"
        "{%- if tools_in_user_message and tools is not none %}"
        "{%- if messages | length == 0 %}{{- raise_exception('Tools need a turn of the user') }}{% endif %}"
        "{%- set first = messages[0].content | trim %}{% set messages = messages[1:] %}"
        "{{- "
        + header.format("'user'")
        + " + 'Given these functions:' }}"
        + TOOL_LIST
        + "{{- '\\n\\n' + first + '<|eot_id|>' }}"
        "{% endif %}"
        "{%- for turn in messages %}"
        "{%- if 'tool_calls' in turn %}"
        "{%- if turn.tool_calls | length != 1 %}{{- raise_exception('Only single calls are known') }}{% endif %}"
        "{%- set call = turn.tool_calls[0].function %}{{- "
        + header.format("'assistant'")
        + ' + \'{"name": "\' + call.name '
        "+ '\", \"parameters\": ' + call.arguments | tojson + '}<|eot_id|>' }}"
        "{%- elif turn.role in ('tool', 'ipython') %}"
        "{{- "
        + header.format("'ipython'")
        + " + (turn.content | tojson if turn.content is mapping else turn.content) + '<|eot_id|>' }}"
        "{%- else %}{{- "
        + header.format("turn.role")
        + " + turn.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
        "{%- if add_generation_prompt %}{{- " + header.format("'assistant'") + " }}{% endif %}"
    )


LLAMA_31 = llama("{% set date_string = '26 Jul 2024' %}")
LLAMA_32 = llama(
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}"
)

# An answer begins with "<think>", is written from behind "</think>" on, and so never shows what was thought.
DEEPSEEK_R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(head='') %}{%- for turn in messages %}{%- if turn.role == 'system' %}{% set ns.head = turn.content %}"
    "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.head }}{%- for turn in messages %}"
    "{%- if turn.role == 'user' %}{{ '<\uff5cUser\uff5c>' + turn.content }}"
    "{%- elif turn.role == 'assistant' and turn.content is not none %}{% set said = turn.content %}"
    "{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<\uff5cAssistant\uff5c>' + said + eos_token }}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c><think>\\n' }}{% endif %}"
)
# Its first version ends the header before "<think>".
DEEPSEEK_R1_FIRST = DEEPSEEK_R1.replace("<\uff5cAssistant\uff5c><think>\\n", "<\uff5cAssistant\uff5c>")

HERMES = (
    "{{ bos_token }}{% for turn in messages %}{{ " + CHATML_TURN + " }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HERMES_TOOL_USE = (
    "{{ bos_token + '<|im_start|>system\\nYou call functions: <tools>' }}" + TOOL_LIST + "{{ '</tools><|im_end|>\\n' }}"
    "{%- for turn in messages %}"
    "{%- if turn.role == 'tool' %}"
    + TOOL_TURN.replace("<|im_start|>user", "<|im_start|>tool")
    + "{%- elif turn.tool_calls %}"
    "{{- '<|im_start|>assistant' }}" + CALLS + "{{- '<|im_end|>\\n' }}"
    "{%- else %}{{- " + CHATML_TURN + " }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

IM = ["<|im_start|>"]
QWEN_SPECIAL = [*IM, "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
HEADERS = ["<|start_header_id|>", "<|end_header_id|>"]
INST = [
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
]
PUBLISHED = {  # template, bos, eos, other special tokens
    "qwen2.5": (QWEN_25, None, "<|im_end|>", QWEN_SPECIAL),
    "qwen3": (QWEN_3, None, "<|im_end|>", QWEN_SPECIAL),
    "qwen3-instruct-2507": (QWEN_3_INSTRUCT_2507, None, "<|im_end|>", QWEN_SPECIAL),
    "qwen3-thinking-2507": (QWEN_3_THINKING_2507, None, "<|im_end|>", QWEN_SPECIAL),
    "gemma": (GEMMA, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "gemma-3": (GEMMA_3, "<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>", "<start_of_image>"]),
    "olmo-2": (OLMO_2, "<|endoftext|>", "<|endoftext|>", []),
    "olmo-3-instruct": (OLMO_3_INSTRUCT, None, "<|im_end|>", IM),
    "olmo-3-think": (OLMO_3_THINK, None, "<|im_end|>", IM),
    "phi-3": (PHI_3, "<s>", "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "phi-3-medium": (PHI_3_MEDIUM, "<s>", "<|endoftext|>", ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]),
    "phi-4": (PHI_4, "<|endoftext|>", "<|im_end|>", [*IM, "<|im_sep|>"]),
    "phi-4-mini": (
        PHI_4_MINI,
        "<|endoftext|>",
        "<|endoftext|>",
        ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|/tool|>"],
    ),
    "granite-3": (GRANITE_3, "<|end_of_text|>", "<|end_of_text|>", ["<|start_of_role|>", "<|end_of_role|>"]),
    "smollm3": (SMOLLM_3, None, "<|im_end|>", [*IM, "<think>", "</think>"]),
    "mistral-0.1": (MISTRAL, "<s>", "</s>", INST),
    "mistral-0.2": (MISTRAL_02, "<s>", "</s>", INST),
    "mistral-0.3": (MISTRAL_03, "<s>", "</s>", INST),
    "mistral-nemo": (MISTRAL_NEMO, "<s>", "</s>", INST),
    "mistral-small": (MISTRAL_SMALL, "<s>", "</s>", [*INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]),
    "llama-3.1": (LLAMA_31, "<|begin_of_text|>", "<|eot_id|>", HEADERS),
    "llama-3.2": (LLAMA_32, "<|begin_of_text|>", "<|eot_id|>", HEADERS),
    "deepseek-r1": (
        DEEPSEEK_R1,
        "<\uff5cbegin▁of▁sentence\uff5c>",
        "<\uff5cend▁of▁sentence\uff5c>",
        ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"],
    ),
    "deepseek-r1-first": (
        DEEPSEEK_R1_FIRST,
        "<\uff5cbegin▁of▁sentence\uff5c>",
        "<\uff5cend▁of▁sentence\uff5c>",
        ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"],
    ),
    "hermes": ({"default": HERMES, "tool_use": HERMES_TOOL_USE}, "<|begin_of_text|>", "<|im_end|>", IM),
    "zephyr": (ZEPHYR, "<s>", "</s>", []),
}


@functools.cache
def published(name):
    """A byte-level tokenizer with a template and the special tokens of this name; one for all tests, so templates are given."""
    return build(*PUBLISHED[name])
