#include "dflash/text/jinja.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace jinja_test {

using namespace dflash;
using jinja::List;
using jinja::Map;

std::string render(const std::string& source, Map variables = {}) {
  return JinjaTemplate(source, "t").render(std::move(variables));
}

std::string complaint(const std::string& source, Map variables = {}) {
  return error_of([&] { render(source, std::move(variables)); });
}

Map message(const char* role, const char* content) {
  return {{"role", role}, {"content", content}};
}

const Map chat = {{"messages", List{message("user", "Hi"), message("assistant", "Yes")}},
                  {"bos_token", "<s>"}};

TEST_CASE("text, output, loops and conditions") {
  CHECK(render("plain") == "plain");
  CHECK(
      render("{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m['content'] }}]{% endfor %}",
             chat) == "<s>[user:Hi][assistant:Yes]");
  CHECK(render("{% if a %}1{% elif b %}2{% else %}3{% endif %}", {{"b", true}}) == "2");
  CHECK(render("{% for x in [] %}a{% else %}none{% endfor %}") == "none");
  CHECK(render("{% for x in range(6) if x is odd %}{{ loop.index }}{{ x }} {% endfor %}") ==
        "11 23 35 ");
  CHECK(render("{% for x in 'abc' %}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}"
               "{{ loop.previtem }}{{ loop.nextitem }},{% endfor %}") ==
        "TrueFalse3b,FalseFalse2ac,FalseTrue1b,");
  CHECK(render("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}{{ v }}{% endfor %}") == "a1b2");
  CHECK(render("{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}"
               "{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}") == "0134");
  CHECK(render("{% generation %}x{% endgeneration %}") == "x");
}

TEST_CASE("tags take white space as Hugging Face sets it") {
  CHECK(render("a\n  {% if true %}\n  b\n  {% endif %}\nc") == "a\n  b\nc");
  CHECK(render("a\n  {%+ if true %}\n  b{% endif +%}\nc") == "a\n    b\nc");
  CHECK(render("a \n {{- 1 -}} \n b") == "a1b");
  CHECK(render("a  {%- set x = 1 -%}  b") == "ab");
  CHECK(render("  {# note #}\nb\n") == "b");
  CHECK(render("{{ 1 }}\nb\n\n") == "1\nb\n");  // one newline at the end goes
  CHECK(render("x {% raw %} {{ y }} {% endraw %}\nz") == "x  {{ y }} z");
  CHECK(render("{{ 'a\r\nb' }}") == "a\nb");
}

TEST_CASE("names set in a loop stay in it; a namespace carries them out") {
  CHECK(render("{% set x = 1 %}{% for i in [1, 2] %}{% set x = i + 10 %}{% endfor %}{{ x }}") ==
        "1");
  CHECK(render("{% set n = namespace(x=1) %}{% for i in [1, 2] %}{% set n.x = n.x + i %}"
               "{% endfor %}{{ n.x }}") == "4");
  CHECK(render("{% if true %}{% set x = 5 %}{% endif %}{{ x }}") == "5");
  CHECK(render("{% set a, b = 1, 2 %}{{ b }}{{ a }}") == "21");
  CHECK(render("{% set x %}a{{ 1 }}{% endset %}[{{ x }}]") == "[a1]");
  CHECK(render("{% set x | upper %}ab{% endset %}{{ x }}") == "AB");
  CHECK(render("{% with a = 2 %}{{ a }}{% endwith %}{{ a }}") == "2");
}

TEST_CASE("macros and calls") {
  CHECK(render("{% macro f(a, b='x') %}{{ a }}{{ b }};{% endmacro %}{{ f(1) }}{{ f(1, 2) }}"
               "{{ f(b=3, a=4) }}{{ f(*[5, 6]) }}") == "1x;12;43;56;");
  CHECK(render("{% macro f() %}<{{ caller('q') }}>{% endmacro %}{% call(z) f() %}{{ z }}!"
               "{% endcall %}") == "<q!>");
  CHECK(render("{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}"
               "{{ f(3) }}") == "3210");
  CHECK(render("{% filter upper %}a{{ 'b' }}{% endfilter %}") == "AB");
  CHECK(render("{% for t in [{'n': 1, 'c': [{'n': 2, 'c': []}]}] recursive %}{{ t.n }}"
               "{{ loop(t.c) }}{% endfor %}") == "12");
}

TEST_CASE("expressions are Python's") {
  CHECK(render("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }}") ==
        "3 -4 2 3.5 1024");
  CHECK(render("{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' in 'cat' }} {{ 'k' in {'k': 1} }}"
               " {{ 3 not in [1, 2] }}") == "True True True True True");
  CHECK(render("{{ 'a' ~ 1 ~ none ~ true }}") == "a1NoneTrue");
  CHECK(render("{{ 'x' if false }}{{ 'y' if 1 else 'z' }}{{ not '' }}") == "yTrue");
  CHECK(render("{{ [1, 'a', 2.0, {'k': none}] }}") == "[1, 'a', 2.0, {'k': None}]");
  CHECK(render("{{ 'abcdef'[1:3] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][:-1] }}") ==
        "bc cba 3 [1, 2]");
  CHECK(render("{{ 'h\u00e9llo'[1] }}{{ 'h\u00e9llo' | length }}") == "\u00e95");
  CHECK(render("{{ 1e16 }} {{ 0.1 }} {{ 1e-5 }} {{ 100.0 }} {{ 123456.789 }}") ==
        "1e+16 0.1 1e-05 100.0 123456.789");
  CHECK(render("{{ a.b is defined }}{{ a is not none }}{{ x is undefined }}", {{"a", Map{}}}) ==
        "FalseTrueTrue");
  CHECK(render("{{ 'a' 'b' }}{{ \"\\u00e9\\n\\x41\" }}") == "ab\u00e9\nA");
  CHECK(render("{{ '%s is %d, %.1f' % ('n', 3, 2.25) }}") == "n is 3, 2.2");
}

TEST_CASE("methods, filters and tests") {
  CHECK(render("{{ ' a b '.strip() }}|{{ 'a</t>b'.split('</t>')[-1] }}|{{ 'xxa'.lstrip('x') }}") ==
        "a b|b|a");
  CHECK(render("{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith(('x', 'c')) }}") == "TrueTrue");
  CHECK(render("{{ 'a b'.title() }} {{ 'abc'.replace('b', '-') }} {{ 'A' | lower }}") ==
        "A B a-c a");
  CHECK(render(
            "{{ ' 1  2 3 '.split() }}{{ ' 1 2 3 '.split(none, 1) }}{{ 'a,b,c'.rsplit(',', 1) }}") ==
        "['1', '2', '3']['1', '2 3 ']['a,b', 'c']");
  CHECK(render("{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.get('b') }}{{ {'a': 1} | items | list }}") ==
        "2None[['a', 1]]");
  CHECK(render("{{ messages | map(attribute='role') | join(', ') }}", chat) == "user, assistant");
  CHECK(
      render(
          "{{ (messages | selectattr('role', 'equalto', 'user') | list) | length }}"
          "{{ messages | rejectattr('role', 'in', ['user']) | map(attribute='content') | first }}",
          chat) == "1Yes");
  CHECK(
      render("{{ x | default('d') }}{{ '' | default('e', true) }}{{ [3, 1, 2] | sort | last }}") ==
      "de3");
  CHECK(
      render(
          "{{ 'a b' | capitalize }} {{ '7' | int + 1 }} {{ 'x' | int(5) }} {{ '1.5' | float }}") ==
      "A b 8 5 1.5");
  CHECK(render("{{ 'a\nb' | indent(2) }}|{{ [1, 2, 2] | unique | list }}|{{ [1, 2] | sum }}") ==
        "a\n  b|[1, 2]|3");
  CHECK(render("{{ {} is mapping }}{{ 'a' is string }}{{ [1] is iterable }}{{ 1 is number }}"
               "{{ true is boolean }}{{ true is integer }}{{ 4 is divisibleby 2 }}") ==
        "TrueTrueTrueTrueTrueFalseTrue");
}

TEST_CASE("searches keep within their bounds, which count characters, from the end if negative") {
  CHECK(
      render("{{ 'h\u00e9ll\u00e9'.find('l', 3) }} {{ 'abcabc'.find('a', 1) }}"
             " {{ 'abcabc'.find('c', 0, 2) }} {{ 'abcabc'.find('a', -3) }}"
             " {{ 'abcabc'.rfind('a', none, -3) }} {{ 'abc'.find('', 3) }}"
             " {{ 'abc'.find('', 4) }} {{ 'abcabc'.index('b', 2) }} {{ 'abc'.rindex('a', -9) }}") ==
      "3 3 -1 3 0 3 -1 4 0");
  CHECK(
      render(
          "{{ 'abc'.startswith('b', 1) }} {{ 'abc'.startswith('ab', 0, 1) }}"
          " {{ '\u00e9\u00e9b'.endswith('\u00e9', 0, -1) }} {{ 'abc'.endswith(('x', 'b'), 0, 2) }}"
          " {{ 'abc'.startswith('', 4) }}") == "True False True True False");
  CHECK(render("{{ 'aXaXa'.count('a', 1) }} {{ 'aXaXa'.count('a', 1, -1) }}"
               " {{ '\u00e9\u00e9'.count('', 1) }} {{ 'abc'.count('', 5) }}") == "2 1 2 0");
  CHECK(render("{{ [1, 2, 1].index(1, 1) }} {{ [1, 2, 1].index(1, -2) }}"
               " {{ [1, 2, 1].index(2, 0, 9) }}") == "2 2 1");
  CHECK(mentions(complaint("{{ [1, 2, 1].index(1, 1, -1) }}"), "is not there"));
  CHECK(mentions(complaint("{{ 'abc'.index('a', 1) }}"), "is not there"));
  CHECK(mentions(complaint("{{ 'abc'.find('a', 'b') }}"), "where an integer is expected"));
}

TEST_CASE("text is filled up with one character") {
  CHECK(render("{{ 'a'.ljust(3, '.') }}{{ 'a'.rjust(3, '\u00e9') }}{{ 'a'.center(4) }}|"
               "{{ '-7'.zfill(4) }}") == "a..\u00e9\u00e9a a  |-007");
  CHECK(mentions(complaint("{{ 'a'.ljust(5, 1) }}"), "the fill character is of type int"));
  CHECK(mentions(complaint("{{ 'a'.rjust(5, [1]) }}"), "the fill character is of type list"));
  CHECK(mentions(complaint("{{ 'a'.center(5, '') }}"), "is not one character"));
  CHECK(mentions(complaint("{{ 'a'.center(0, 'ab') }}"), "is not one character"));
}

TEST_CASE("a '%' format takes a tuple as its values and anything else as one") {
  CHECK(render("{{ '%s' % [3, 1, 2] }}{{ '%s' % ([3, 1],) }}{{ '%s-%s' | format(1, [2]) }}") ==
        "[3, 1, 2][3, 1]1-[2]");
  CHECK(render("{% set t = 1, 2 %}{{ '%s %s' % t }}{% for i in {'a': 1}.items() %}{{ '%s=%s' % i }}"
               "{% endfor %}{{ '%s%s%s' % 'a-b'.partition('-') }}") == "1 2a=1a-b");
  CHECK(mentions(complaint("{{ '%s %s' % [1, 2] }}"), "too few values"));
}

TEST_CASE("tojson is spaced as json.dumps does it and escapes nothing for HTML") {
  const Map v{
      {"v", Map{{"a", "<\u00e9>\n\"&"}, {"b", List{1, 2.5, true, jinja::None()}}, {"c", Map{}}}}};
  CHECK(render("{{ v | tojson }}", v) ==
        "{\"a\": \"<\u00e9>\\n\\\"&\", \"b\": [1, 2.5, true, null], \"c\": {}}");
  CHECK(render("{{ v.b | tojson(indent=2) }}", v) == "[\n  1,\n  2.5,\n  true,\n  null\n]");
  CHECK(render("{{ v.a | tojson(ensure_ascii=true) }}", v) == "\"<\\u00e9>\\n\\\"&\"");
  CHECK(render("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}") ==
        "{\"a\":2,\"b\":1}");
  CHECK(mentions(complaint("{{ x | tojson }}"), "cannot be written as JSON"));
}

TEST_CASE("a mistake in a template is told with its line") {
  CHECK(complaint("a\n\n{% if x %}") == "t, line 3: 'endif' is missing");
  CHECK(complaint("a\n{{ x ") == "t, line 2: the template ends inside a tag");
  CHECK(complaint("{{ 'a }}").starts_with("t, line 1: a string does not end"));
  CHECK(mentions(complaint("\n{% blah %}"), "line 2: the tag 'blah' is not supported"));
  CHECK(mentions(complaint("\n\n{{ 1 | blah }}"), "line 3: there is no filter 'blah'"));
  CHECK(mentions(complaint("{{ 1 is blah }}"), "there is no test 'blah'"));
  CHECK(mentions(complaint("{{ ) }}"), "')' closes nothing"));
  CHECK(mentions(complaint("{{ 1 + }}"), "expected a value before '}}'"));
  CHECK(mentions(complaint("{% endif %}"), "'endif' ends nothing"));
  CHECK(mentions(complaint("{% break %}"), "outside of a loop"));
  CHECK(mentions(complaint("{# no end"), "a comment does not end"));
}

TEST_CASE("an error while rendering is told with its line") {
  CHECK(complaint("a\n{{ raise_exception('No ' ~ 'way') }}") == "t, line 2: No way");
  CHECK(complaint("\n{{ x.y }}") == "t, line 2: 'x' is undefined");
  CHECK(mentions(complaint("{{ 'a' + 1 }}"), "str and int do not go with '+'"));
  CHECK(mentions(complaint("{{ [1] + none }}"), "list and none"));
  CHECK(mentions(complaint("{{ 1 // 0 }}"), "division by zero"));
  CHECK(mentions(complaint("{{ 9223372036854775807 + 1 }}"), "overflows"));
  CHECK(mentions(complaint("{{ 'a'.nothing() }}"), "no attribute 'nothing'"));
  CHECK(mentions(complaint("{% set m.a = 1 %}", {{"m", Map{}}}), "is no namespace"));
  CHECK(mentions(complaint("{{ [2, 'a'] | sort }}"), "have no order"));
}

TEST_CASE("templates that mean harm end with an error") {
  CHECK(mentions(complaint("{{ " + std::string(100'000, '(') + std::string(100'000, ')') + " }}"),
                 "nested too deeply"));
  CHECK(mentions(complaint("{{ " + std::string(100'000, '-') + "1 }}"), "nested too deeply"));
  std::string sum = "{{ 1", dots = "{{ a", blocks, chain = "{{ 1";
  for (int i = 0; i < 100'000; ++i) {
    sum += "+1";
    dots += ".b";
    chain += "|abs";
    blocks += "{% if 1 %}";
  }
  CHECK(mentions(complaint(sum + " }}"), "nested too deeply"));
  CHECK(mentions(complaint(dots + " }}"), "nested too deeply"));
  CHECK(mentions(complaint(chain + " }}"), "nested too deeply"));
  CHECK(mentions(complaint(blocks), "nested too deeply"));
  CHECK(
      mentions(complaint("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "nested too deeply"));
  CHECK(mentions(complaint("{{ range(10 ** 9) | length }}"), "100000"));
  CHECK(mentions(complaint("{{ 'a' * 10 ** 12 }}"), "too long"));
  CHECK(mentions(complaint("{{ 'a' | center(10 ** 12) }}"), "too large"));
  const std::string long_text = "{% set n = namespace(x='a' * 2 ** 24, l=['b'] * 2 ** 24) %}";
  for (const std::string grown :
       {"n.x ~ 1", "n.x + 'b'", "n.l + [1]", "n.l | join('b' * 9999)", "'-'.join(n.l)",
        "n.x.replace('a', 'b' * 9999)", "n.x | replace('', 'b')", "'%s%s' % (n.x, n.x)",
        "n.x | tojson", "('\\n' * 9999) | indent(9999, blank=true)"})
    CHECK(mentions(complaint(long_text + "{% set y = " + grown + " %}"), "too long"));
  CHECK(mentions(complaint("{% set n = namespace(x='a') %}{% for i in range(99) %}"
                           "{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"),
                 "too long"));
  const std::string many = "{% for i in range(1000) %}{% for j in range(200) %}";
  CHECK(render("{% set n = namespace(x=1) %}" + many +
               "{% set n.x = [[[[n.x]]]] %}{% endfor %}{% endfor %}") == "");
  CHECK(render("{% set n = namespace(x=1) %}" + many +
               "{% set n.x = {'a': [n.x]}.get %}{% endfor %}{% endfor %}") == "");
  CHECK(render(
            "{% set n = namespace(x=namespace()) %}{% set first = n.x %}{% for i in range(99999) %}"
            "{% set new = namespace() %}{% set end = n.x %}{% set end.next = new %}"
            "{% set n.x = new %}{% endfor %}") == "");
  const std::string loops = "{% for a in range(99999) %}{% for b in range(99999) %}";
  CHECK(mentions(complaint(loops + "{% endfor %}{% endfor %}"), "does not come to an end"));
}

}  // namespace jinja_test
