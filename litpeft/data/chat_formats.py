"""Chat formats of model families as Jinja templates, for tokenizers that have no chat template.

They are written from the published descriptions of the formats; none has tools. The names are values of
`data.template`.
"""

from __future__ import annotations

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

# the system text stands in the first user turn, between <<SYS>> and <</SYS>>
_LLAMA_2 = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages if system is none else messages[1:] -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant turns must alternate, and the first must be of the user') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{%- set start = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' if loop.first and system is not none else '' -%}
{{ bos_token + '[INST] ' + start + message['content'].strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}"""

_LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'].strip() + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

# the system text stands in the last user turn, as in versions 1 to 3 of the format
_MISTRAL = """\
{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages if system is none else messages[1:] -%}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('user and assistant turns must alternate, and the first must be of the user') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{%- set is_last = loop.index0 // 2 == users | length - 1 -%}
{{ '[INST] ' + (system + '\\n\\n' if is_last and system is not none else '') + message['content'] + '[/INST]' }}
{%- else -%}
{{ ' ' + message['content'].strip() + eos_token }}
{%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ raise_exception('the format has no system turn') }}{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{ '<start_of_turn>' + role + '\\n' + message['content'].strip() + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

_PHI_3 = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor -%}
{{- '<|assistant|>\\n' if add_generation_prompt else eos_token -}}"""

_QWEN = (
    """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}"""
    + _CHATML
)

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"""

CHAT_FORMATS = {
    "chatml": _CHATML,
    "llama2": _LLAMA_2,
    "llama3": _LLAMA_3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "phi3": _PHI_3,
    "qwen": _QWEN,
    "zephyr": _ZEPHYR,
}
