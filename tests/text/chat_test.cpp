#include "dflash/text/chat.hpp"

#include <doctest/doctest.h>

#include "io/temporary_folder.hpp"

namespace chat_test {

using namespace dflash;
using jinja::List;
using jinja::Map;
using Ids = std::vector<std::int32_t>;

/// One token for each byte, and one for each of these marks.
Tokenizer byte_tokenizer(const std::string& jinja, const std::vector<std::string>& marks = {}) {
  TokenizerDefinition definition;
  definition.source = "bytes";
  for (int byte = 0; byte < 256; ++byte) {
    std::string name;
    append_utf8(name, ByteAlphabet::get().character(std::uint8_t(byte)));
    definition.vocabulary[name] = byte;
  }
  for (const std::string& mark : marks) {
    AddedToken token;
    token.id = 256 + std::int32_t(definition.added_tokens.size());
    token.text = mark;
    token.special = true;
    definition.added_tokens.push_back(token);
  }
  definition.special_tokens = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  if (!jinja.empty()) definition.chat_templates["default"] = jinja;
  return Tokenizer(std::move(definition));
}

Map message(const char* role, const std::string& content) {
  return {{"role", role}, {"content", content}};
}

Conversation conversation(List messages) { return {std::move(messages), {}, {}}; }

const std::string chatml =
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

/// The text that a mask chooses, for tokenizers with one token for each byte.
std::string learned(const TokenizedSample& sample) {
  std::string text;
  for (std::size_t i = 0; i < sample.tokens.size(); ++i)
    if (sample.loss_mask[i]) text += char(sample.tokens[i]);
  return text;
}

std::string roles(const List& messages) {
  std::string out;
  for (const auto& m : messages) out += m.map().find("role")->string() + " ";
  return out;
}

std::string learned_of(const char* chat_template, const std::string& text,
                       const ChatOptions& options = {}) {
  const Tokenizer tokenizer = byte_tokenizer("");
  return learned(chat_for(tokenizer, chat_template).tokenize_text(text, options));
}

TEST_CASE("messages that no template can take are left out") {
  const ChatTemplate& qwen = named_chat_template("qwen");
  const auto kept = [&](List messages) { return roles(usable_messages(messages, qwen)); };
  const auto m = [](const char* role) { return message(role, "x"); };
  CHECK(kept({}) == "");
  CHECK(kept({m("assistant"), m("user"), m("assistant")}) == "system user assistant ");
  CHECK(kept({m("system"), m("tool"), m("user")}) == "system user ");
  CHECK(kept({m("user"), m("assistant"), m("assistant"), m("user")}) == "system user assistant ");
  CHECK(kept({m("user"), m("tool"), m("user")}) == "system user ");
  CHECK(kept({m("user"), m("assistant"), m("tool"), m("tool"), m("assistant")}) ==
        "system user assistant tool tool assistant ");
  CHECK(kept({m("user"), m("assistant"), m("system"), m("user")}) ==
        "system user assistant system user ");
  CHECK(roles(usable_messages({m("user")}, named_chat_template("lfm"))) == "user ");
}

TEST_CASE("messages are read under all their names") {
  const List given = {Map{{"from", "human"}, {"value", "q"}},
                      Map{{"role", "gpt"}, {"content", jinja::None()}, {"extra", 1}}};
  const List out = usable_messages(given, named_chat_template("lfm"));
  REQUIRE(roles(out) == "user assistant ");
  CHECK(out[0].map().find("content")->string() == "q");
  CHECK(out[1].map().find("content")->string().empty());
  CHECK(!out[1].map().contains("extra"));
}

TEST_CASE("tool calls keep their known fields, arguments become values") {
  const Map call{{"function", Map{{"arguments", "{\"a\": [1]}"}, {"name", "f"}, {"x", 1}}},
                 {"extra", 2}};
  const List given = {message("user", "q"),
                      Map{{"role", "assistant"},
                          {"content", "a"},
                          {"reasoning_content", "r"},
                          {"tool_calls", List{call, "no call"}}},
                      Map{{"role", "tool"}, {"content", "t"}, {"tool_calls", "no JSON"}}};
  const List general = usable_messages(given, named_chat_template("lfm"));
  CHECK(jinja::json_text(general[1]) ==
        "{\"role\": \"assistant\", \"content\": \"a\", \"tool_calls\": [{\"id\": \"\", \"type\": "
        "\"function\", \"function\": {\"name\": \"f\", \"arguments\": {\"a\": [1]}}}]}");
  CHECK(!general[2].map().contains("tool_calls"));
  const List thinking = usable_messages(given, named_chat_template("qwen3.5"));
  CHECK(thinking[1].map().find("reasoning_content")->string() == "r");
}

TEST_CASE("every assistant's turn is learned with its end, or the last alone") {
  const std::string text =
      "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n"
      "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>\n";
  CHECK(learned_of("qwen", text) == "one<|im_end|>\ntwo<|im_end|>\n");
  CHECK(learned_of("qwen", text, {2048, true}) == "two<|im_end|>\n");
  CHECK(learned_of("qwen", text, {53, false}) == "on");
  CHECK(learned_of("qwen", "nothing here").empty());
  CHECK(learned_of("qwen", "\xff<|im_start|>assistant\na\xe2\x82<|im_end|>\n") ==
        "a\uFFFD<|im_end|>\n");
}

TEST_CASE("a turn without its end goes to the end of the text, less one newline") {
  CHECK(learned_of("qwen", "<|im_start|>assistant\nopen") == "open");
  CHECK(learned_of("qwen", "<|im_start|>assistant\nopen\n") == "open");
  CHECK(learned_of("qwen", "<|im_start|>assistant\nopen\n\n") == "open\n");
  CHECK(learned_of("qwen", "<|im_start|>assistant\n").empty());
}

TEST_CASE("each family ends its turns in its own way") {
  CHECK(learned_of("longcat",
                   "[Round 0] USER:q ASSISTANT:a</longcat_s>[Round 12] USER:r"
                   " ASSISTANT:b</longcat_s>") == "a</longcat_s>[Round 12] USER:b</longcat_s>");
  CHECK(learned_of("longcat", " ASSISTANT:a[Round ] USER:b[Round x] USER:") ==
        "a[Round ] USER:b[Round x] USER:");
  CHECK(learned_of("glm-5.2", "<|user|>q<|assistant|><think></think>a<|user|>r") == "a");
  CHECK(learned_of("glm-5.2", "<|assistant|><think>t</think>a<|user|>") == "t</think>a");
  CHECK(learned_of("inkling-thinking",
                   "<|message_model|>a<|message_tool|>t<|message_model|>b"
                   "<|message_system|>s") == "ab");
  CHECK(
      learned_of("qwen3-instruct", "<|im_start|>assistant\n<think>\n\n</think>\n\nx<|im_end|>\n") ==
      "x<|im_end|>\n");
}

TEST_CASE("a token that crosses a border shifts it, as counting does") {
  TokenizerDefinition definition = byte_tokenizer("").definition();
  definition.vocabulary
      ["\u010a"
       "o"] = 300;  // newline and o
  definition.merges = {{"\u010a", "o"}};
  const Tokenizer tokenizer(definition);
  const Chat chat = chat_for(tokenizer, "qwen");
  const TokenizedSample sample = chat.tokenize_text("<|im_start|>assistant\nok<|im_end|>\n", {});
  // The header alone is 22 tokens, with the answer's first letter it still is.
  CHECK(sample.tokens[21] == 300);
  CHECK(sample.loss_mask[21] == 0);
  CHECK(sample.loss_mask[22] == 1);
}

TEST_CASE("counts of beginnings equal those of tokenizing each alone") {
  const Tokenizer tokenizer(std::filesystem::path(DFLASH_TEST_DATA) /
                            "golden/tokenizer/mini_whole");
  const std::string text =
      "a <strip> b<|eot_id|>norm  [WORD]x [WORD] <left>y<|eot<|eot_id|> caf\u00e9 abnormal norm";
  PrefixCounter count(tokenizer, text);
  for (std::size_t at = 0; at <= text.size(); ++at) {
    const std::string prefix = text.substr(0, at);
    if (is_utf8(prefix)) CHECK(count(index_t(at)) == index_t(tokenizer.encode(prefix).size()));
  }
}

TEST_CASE("gpt-oss is rendered here and learns all channels") {
  const Tokenizer tokenizer = byte_tokenizer("");
  const Chat chat = chat_for(tokenizer, "gpt-oss");
  const Conversation talk = conversation({message("assistant_reasoning_effort", "HIGH"),
                                          message("user", "q"), message("assistant_analysis", "t"),
                                          message("assistant_final", "a"), message("user", "r")});
  const std::string text = chat.render(talk);
  CHECK(mentions(text, "Reasoning: high"));
  CHECK(learned(chat.tokenize_text(text, {})) ==
        "<|channel|>analysis<|message|>t<|end|><|start|>assistant<|channel|>final<|message|>a"
        "<|end|>");
  CHECK(chat.render(conversation({message("user", "old"), message("system", "s")})) ==
        "<|start|>system<|message|>s<|end|>");
  CHECK(mentions(error_of([&] { chat.render(conversation({message("assistant", "a")})); }),
                 "\"assistant\""));
}

TEST_CASE("a tokenizer without a template is rendered by headers") {
  const Tokenizer tokenizer = byte_tokenizer("");
  const Chat chat = chat_for(tokenizer, "phi3");
  const Conversation talk = conversation({message("user", "q"), message("assistant", "a"),
                                          message("tool", "t"), message("user", "r")});
  CHECK(chat.render(talk) ==
        "<s>You are a helpful assistant.<|user|>\nq<|assistant|>\na<|end|>\n<|user|>\nr");
  CHECK(tokenizer.decode(chat.prompt(talk)).ends_with("<|user|>\nr<|assistant|>\n"));
}

TEST_CASE("templates get tools, special tokens and the data's own variables") {
  const Tokenizer tokenizer = byte_tokenizer(
      "{{ bos_token }}{{ tools | length if tools else 'none' }}{{ enable_thinking }}{{ mood }}");
  Conversation talk = conversation({message("user", "q")});
  CHECK(chat_for(tokenizer, "lfm").render(talk) == "<s>none");
  talk.tools = List{Map{{"name", "f"}}};
  talk.variables.set("mood", "good");
  CHECK(chat_for(tokenizer, "lfm").render(talk) == "<s>1good");
  CHECK(chat_for(tokenizer, "qwen3.5").render(talk) == "<s>1Truegood");
  CHECK(chat_for(tokenizer, "glm-5.2").render(talk) == "<s>1Falsegood");
  talk.variables.set("enable_thinking", "later");
  CHECK(chat_for(tokenizer, "glm-5.2").render(talk) == "<s>1latergood");
}

TEST_CASE("the marks of a tokenizer's own template are found") {
  const auto marks = [](const std::string& jinja) {
    const Tokenizer tokenizer = byte_tokenizer(jinja, {"</s>", "<|end|>", "<|user|>"});
    const ChatTemplate found = Chat(tokenizer).chat_template();
    CHECK(found.system_prompt.empty());
    return found.assistant_header + "#" + found.end_of_turn;
  };
  const auto turns = [](const std::string& turn, const std::string& prompt) {
    return "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}" +
           "{% if add_generation_prompt %}" + prompt + "{% endif %}";
  };
  CHECK(marks(chatml) == "<|im_start|>assistant\n#<|im_end|>\n");
  CHECK(marks(turns("{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | "
                    "trim + '<|eot_id|>' }}",
                    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}")) ==
        "<|start_header_id|>assistant<|end_header_id|>\n\n#<|eot_id|>");
  // Ends with the end-of-text token where no answer is waited for.
  CHECK(marks(turns("{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}",
                    "{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}")) ==
        "<|assistant|>\n#<|end|>\n");
  // The prompt opens a thought that old answers do not have.
  CHECK(
      marks(turns("{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last "
                  "%}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{{ m.content + "
                  "'<|im_end|>\\n' }}",
                  "{{ '<|im_start|>assistant\\n<think>\\n' }}")) ==
      "<|im_start|>assistant\n#<|im_end|>\n");
  // Adds nothing for an answer: the user's end is the header.
  CHECK(marks(turns("{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
                    "{{ ' ' + m.content + eos_token }}{% endif %}",
                    "")) == " [/INST]#</s>");
  // Another role's name, and a default system message that is the template's own business.
  CHECK(
      marks("{{ '<start_of_turn>system\\nBe kind.<end_of_turn>\\n' }}" +
            turns("{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
                  "m.content + '<end_of_turn>\\n' }}",
                  "{{ '<start_of_turn>model\\n' }}")) == "<start_of_turn>model\n#<end_of_turn>\n");
  CHECK(marks(turns(
            "{{ '<｜User｜>' + m.content if m.role == 'user' else '<｜Assistant｜>' + m.content "
            "+ '<｜end▁of▁sentence｜>' }}",
            "{{ '<｜Assistant｜>' }}")) == "<｜Assistant｜>#<｜end▁of▁sentence｜>");
}

TEST_CASE("a template whose marks cannot be told is an error that says what to do") {
  const auto complaint = [](const std::string& jinja) {
    const Tokenizer tokenizer = byte_tokenizer(jinja);
    return error_of([&] { Chat chat(tokenizer); });
  };
  CHECK(mentions(complaint(""), "bytes comes with no chat template"));
  CHECK(mentions(complaint("always the same"), "named templates"));
  CHECK(mentions(complaint("{% for m in messages %}{{ m.content }}{% endfor %}"), "begins"));
  CHECK(mentions(complaint("{% if %}"), "chat template of bytes, line 1"));
  CHECK(mentions(complaint("{{ raise_exception('no') }}"), "chat template of bytes, line 1: no"));
  const Tokenizer tokenizer = byte_tokenizer(chatml);
  CHECK(mentions(error_of([&] { chat_for(tokenizer, "nonsense"); }), "\"nonsense\""));
  CHECK(mentions(error_of([&] { chat_for(tokenizer, "deepseek-r1-distill"); }), "does not say"));
}

TEST_CASE("a prompt leaves out the answer at the end and asks for one") {
  const Tokenizer tokenizer = byte_tokenizer(chatml);
  const Chat chat(tokenizer);
  const auto prompt = [&](List messages) {
    return tokenizer.decode(chat.prompt(conversation(std::move(messages))));
  };
  const std::string asked = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n";
  CHECK(prompt({message("user", "q")}) == asked);
  CHECK(prompt({message("user", "q"), message("assistant", "a")}) == asked);
  CHECK(prompt({Map{{"from", "human"}, {"value", "q"}}, Map{{"from", "gpt"}, {"value", "a"}}}) ==
        asked);
}

TEST_CASE("a list as content goes to the tokenizer's template, not into headers") {
  const Conversation talk = conversation(
      {Map{{"role", "user"}, {"content", List{Map{{"type", "text"}, {"text", "part"}}}}}});
  const Tokenizer with = byte_tokenizer("{{ messages[0].content[0].text }}");
  CHECK(chat_for(with, "lfm").render(talk) == "part");
  const Tokenizer without = byte_tokenizer("");
  CHECK(mentions(error_of([&] { chat_for(without, "lfm").render(talk); }), "of type list"));
}

}  // namespace chat_test
