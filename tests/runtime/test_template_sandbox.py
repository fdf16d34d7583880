"""Templates of strangers end, in an answer or in one PromptError, and reach nothing but what they are given."""

from __future__ import annotations

import resource
import time
from typing import Any

import pytest

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import PromptError, TokenizerError
from tests.fuzz.driver import is_message

MESSAGES = [
    {"role": "user", "content": "hi " * 20},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "y"},
]
LONGEST_S = 60.0  # of one template; the slowest takes 1.5 s alone on one core
MOST_BYTES = 600_000_000  # of memory while all of them are tried

# A text of a million characters, and a value whose text would be larger than any memory.
LONG = "{% set ns = namespace(x='ab') %}{% for i in range(19) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
NESTED = "{% set ns = namespace(x=[0]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
TUPLES = "{% set ns = namespace(x=(0,)) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='aa') %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}"
END = "{% endfor %}{% endfor %}"

ENDLESS = {
    "nested loops": LOOP + END,
    "nested loops that write": LOOP + "x" + END,
    "inner loop with a test": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}" + END,
    "loops that break": "{% for a in range(99999) %}{% for b in range(99999) %}{% break %}" + END,
    "loops that continue": LOOP + "{% continue %}" + END,
    "twenty loops": "{% for a in [1, 2, 3, 4, 5, 6, 7, 8] %}" * 12 + "x" + "{% endfor %}" * 12,
    "recursive loop": "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "macro that doubles": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set y = 'aaaaaaaaaaaaaaaa' %}{{ "
    + "m(" * 40
    + "y"
    + ")" * 40
    + " }}",
    "block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "call in itself": "{% macro m() %}{{ caller() }}{{ m() }}{% endmacro %}{% call m() %}{{ m() }}{% endcall %}",
    "text times number": "{{ 'a' * 10 ** 10 }}",
    "list times number": "{{ [0] * 10 ** 10 }}",
    "tuple times number": "{{ (10 ** 10) * (0, 1) }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of powers": "{{ 9 ** (9 ** 9) }}",
    "shifted": "{% set ns = namespace(x=2) %}{% for i in range(99999) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "percents": "{{ ('%99999d' * 9999) % ((1,) * 9999) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format in format": "{{ '{:{}}'.format(1, 10 ** 9) }}",
    "format_map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%1000000000s' | format('a') }}",
    "many places": LONG + "{{ ('{0}' * 9999).format(ns.x) }}",
    "center": "{{ 'a'.center(10 ** 9) }}",
    "center filter": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(10 ** 9) }}",
    "zfill": "{{ 'a'.zfill(10 ** 9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10 ** 9) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "translate": LONG + "{{ ns.x.translate({97: ns.x}) }}",
    "punycode": LONG + "{{ ns.x.encode('punycode') }}",
    "replace": LONG + "{{ ns.x.replace('a', ns.x) }}",
    "replace nothing": LONG + "{{ ns.x.replace('', ns.x) }}",
    "replace filter": LONG + "{{ ns.x | replace('a', ns.x) }}",
    "join": LONG + "{{ ns.x.join(['a'] * 9999) }}",
    "join filter": LONG + "{{ range(9999) | join(ns.x) }}",
    "join of letters": LONG + "{{ ns.x | join(ns.x) }}",
    "indent": LONG + "{{ ('\n' * 99999) | indent(1000000) }}",
    "indent by text": LONG + "{{ ('\n' * 99999) | indent(ns.x) }}",
    "strip": LONG + "{{ ns.x.strip('b' ~ ns.x[::-1]) }}",
    "batch": "{{ [1] | batch(10 ** 9, 0) | list }}",
    "slice": "{{ [1] | slice(10 ** 9) | list }}",
    "round": "{{ 1 | round(10 ** 9, 'ceil') }}",
    "sum of lists": "{{ (range(99999) | batch(1) | list) | sum(start=[]) }}",
    "tojson by spaces": "{{ messages | tojson(indent=10 ** 9) }}",
    "tojson by text": LONG + "{{ messages | tojson(separators=(ns.x, ns.x)) }}",
    "doubling texts": DOUBLING + "{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubling by plus": DOUBLING + "{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubling blocks": DOUBLING + "{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "static text": "{% set x %}{% for i in range(99999) %}" + "z" * 50_000 + "{% endfor %}{% endset %}",
    "long literals": LOOP + "{% set x = [" + "0," * 5_000 + "] %}" + END,
    "nested lists written": NESTED + "{{ ns.x }}",
    "nested lists as text": NESTED + "{{ ns.x | string }}",
    "nested lists in JSON": NESTED + "{{ ns.x | tojson }}",
    "nested lists joined": NESTED + "{{ ns.x ~ 'a' }}",
    "nested lists compared": NESTED + NESTED.replace("ns", "other") + "{{ ns.x == other.x }}",
    "nested lists looked for": NESTED + NESTED.replace("ns", "other") + "{{ ns.x in [other.x] }}",
    "nested lists tested": NESTED + NESTED.replace("ns", "other") + "{{ ns.x is eq(other.x) }}",
    "nested lists sorted": NESTED + "{{ [ns.x, ns.x] | sort }}",
    "nested lists in a namespace": NESTED + "{{ ns }}",
    "nested lists counted": NESTED + NESTED.replace("ns", "other") + "{{ [ns.x].count(other.x) }}",
    "nested lists formatted": NESTED + "{{ '%s' % (ns.x,) }}",
    "nested tuples as a key": TUPLES + "{{ {ns.x: 1} }}",
    "nested tuples looked up": TUPLES + "{{ {1: 1}[ns.x] }}",
    "nested tuples got": TUPLES + "{{ {1: 1}.get(ns.x) }}",
    "value in itself": "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}",
    "methods in a loop": LONG + "{% for i in range(99999) %}{% set y = ns.x.upper() %}{% endfor %}",
    "slices in a loop": LONG + "{% for i in range(99999) %}{% set y = ns.x[::2] %}{% endfor %}",
    "filters in a loop": LONG + "{% for i in range(99999) %}{% set y = ns.x | title %}{% endfor %}",
    "lists in a loop": "{% for i in range(99999) %}{% set y = range(99999) | list %}{% endfor %}",
    "maps of maps": "{{ range(99999) | map('string') | map('upper') | map('center', 9999) | list | length }}",
    "lorem ipsum": "{{ lipsum(n=1000000) }}",
    "format of a date": "{{ strftime_now('%Y' * 10 ** 8) }}",
    "long refusal": LONG + "{{ raise_exception(ns.x) }}",
    "urlize": LONG + "{{ ns.x | urlize }}",
    "range too big": "{{ range(10 ** 9) | list }}",
}
BROKEN = {
    "division by zero": "{{ 1 // 0 }}",
    "overflow": "{{ 10 ** 400 / 3 }}",
    "lookup": "{{ [][0].x.y }}",
    "type": "{{ 1 + 'a' }}",
    "value": "{{ 'abc'.index('z') }}",
    "control characters": "{{ raise_exception('a\x1b[2J\n\n\u202eb\x07c') }}",
    "refusal of another type": "{{ raise_exception(messages) }}",
    "half a character": "{{ '\\ud83d' }}",
    "half a date": "{{ strftime_now('\\ud83d') }}",
    "another template": "{% include 'x' %}",
    "a base": "{% extends 'x' %}",
    "an import": "{% import 'x' as y %}",
    "unknown argument": "{{ messages | tojson(nothing=1) }}",
    "too few arguments": "{{ messages | replace }}",
    "call of a value": "{{ 'a'() }}",
    "call of nothing": "{{ nothing() }}",
    "loop over nothing": "{% for x in 5 %}{% endfor %}",
}
NOT_COMPILED = {
    "unknown tag": "{% trans %}",
    "unknown filter": "{{ 1 | nothing }}",
    "open": "{% if",
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested lists": "{{ " + "[" * 90_000 + " }}",
    "nested ifs": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "nested loops": "{% for a in b %}" * 3000 + "{% endfor %}" * 3000,
    "long sum": "{{ " + "1+" * 5_000 + "1 }}",
    "long path": "{{ a" + ".b" * 5_000 + " }}",
    "many nots": "{{ " + "not " * 40_000 + "1 }}",
    "many digits": "{{ " + "9" * 100_000 + " }}",
    "too long": "x" * 10_000_000,
    "a name twice": "{% macro m(a, a) %}{% endmacro %}",
    "a keyword twice": "{{ dict(a=1, a=2) }}",
    "assignment": "{% set 1 = 2 %}",
    "block twice": "{% block a %}{% endblock %}{% block a %}{% endblock %}",
    "open generation": "{% generation %}",
    "control characters": "{% \x1b[2J %}",
}
# What one can reach Python by: classes, code, frames, globals, formats, modules, files.
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__']['__base__'] }}",
    "{{ '' | attr('__class__') | attr('__mro__') | list }}",
    "{{ messages.__class__.__init__.__globals__['os'].system('id') }}",
    "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "{{ self._TemplateReference__context.environment.filters }}",
    "{{ self._TemplateReference__context[' budget'].left }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ raise_exception.__globals__.jinja2.os }}",
    "{{ strftime_now.__globals__['__builtins__'].eval('1') }}",
    "{{ (messages | map('upper')).gi_frame.f_back.f_globals }}",
    "{{ messages | map(attribute='__class__') | map('string') | first }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0.__init__.__globals__}'.format(cycler) }}",
    "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "{{ ('{0.__cla' ~ 'ss__}') | attr('format') }}{{ ('{0.__cla' ~ 'ss__.x}').format('') }}",
    "{{ ['{0.__class__.x}'] | map('attr', 'format') | first }}{{ ['{0.__class__.x.y}'][0].format('') }}",
    "{{ (['{0.__class__.x}'.format] | first)('') }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__.co_consts }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__.__func__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._environment.from_string('x') }}",
    "{% for x in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop._recurse.__globals__ }}{{ loop._iterator.x.y }}{% endfor %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'z'}) }}",
    "{{ messages[0].clear() }}",
    "{{ messages[0].__setitem__('content', 'z') }}",
    "{{ dict.mro() }}",
    "{{ range.__class__.mro(range) }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ ''.join.__self__.__class__.x }}",
    "{{ nothing.__init__.__globals__ }}",
    "{{ nothing._fail_with_undefined_error.__func__.__globals__ }}",
    "{{ messages | groupby('__class__') | list }}",
    "{{ messages | sum(attribute='__class__') }}",
    "{{ messages | sort(attribute='__class__.__name__') }}",
    "{{ context.environment }}{{ environment.filters.x }}",
    "{{ caller.__globals__ }}",
)


def rendered(source: str, **variables: Any) -> str:
    """What comes of it; the message of the error where there is one."""
    try:
        return ChatTemplate(source).render(MESSAGES, variables=variables)
    except (PromptError, TokenizerError) as error:
        said = str(error)
    assert is_message(said)
    assert "\n" not in said
    assert len(said) < 500
    return f"refused: {said}"


@pytest.mark.parametrize("name", ENDLESS)
def test_no_template_goes_on_for_ever(name: str) -> None:
    started, before = time.perf_counter(), _memory()
    said = rendered(ENDLESS[name])
    assert time.perf_counter() - started < LONGEST_S
    assert _memory() - before < MOST_BYTES
    assert said.startswith("refused: ")


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_goes_wrong_is_one_prompt_error(name: str) -> None:
    template = ChatTemplate(BROKEN[name])
    with pytest.raises(PromptError):
        template.render(MESSAGES)
    rendered(BROKEN[name])


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_what_does_not_compile_is_one_tokenizer_error(name: str) -> None:
    started = time.perf_counter()
    with pytest.raises(TokenizerError, match="does not compile"):
        ChatTemplate(NOT_COMPILED[name])
    assert time.perf_counter() - started < LONGEST_S
    rendered(NOT_COMPILED[name])


@pytest.mark.parametrize("attack", ESCAPES)
def test_no_way_out_of_the_sandbox(attack: str) -> None:
    given = [dict(message) for message in MESSAGES]
    try:
        said = ChatTemplate(attack).render(given)
    except PromptError:
        said = ""
    assert said in ("", "[]")  # what jinja2 makes of values that it does not give
    assert given == MESSAGES


def _memory() -> int:
    """The most that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
