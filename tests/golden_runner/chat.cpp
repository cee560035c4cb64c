// Conversations: rendered text, tokens and loss masks; the table of named templates.

#include "dflash/text/chat.hpp"

#include <fstream>
#include <map>

#include "dflash/io/json_file.hpp"
#include "golden.hpp"

using namespace dflash;
using OrderedJson =
    nlohmann::ordered_json;  // the order of a message's fields can be seen in its text

namespace golden {
namespace {

OrderedJson read_ordered(const std::filesystem::path& file) {
  read_json(file);  // for its errors
  std::ifstream stream(file);
  return OrderedJson::parse(stream);
}

std::string text_or_none(const OrderedJson& json) {
  return json.is_null() ? "" : json.get<std::string>();
}

void run_templates(const std::filesystem::path& file, Report& report) {
  const std::map<std::string, ChatStyle> styles = {{"general", ChatStyle::general},
                                                   {"thinking", ChatStyle::thinking},
                                                   {"glm", ChatStyle::glm},
                                                   {"openai-harmony", ChatStyle::harmony}};
  const std::map<std::string, SpanRule> rules = {{"general", SpanRule::general},
                                                 {"longcat", SpanRule::longcat},
                                                 {"glm", SpanRule::glm},
                                                 {"inkling", SpanRule::inkling}};
  for (const OrderedJson& item : read_ordered(file).at("templates")) {
    const std::string name = item.at("name");
    const ChatTemplate& found = named_chat_template(name);
    const auto same = [&](const char* field, const std::string& value) {
      report.expect(value == text_or_none(item.at(field)), name + ": " + field);
    };
    same("assistant_header", found.assistant_header);
    same("user_header", found.user_header);
    same("end_of_turn", found.end_of_turn);
    same("system_prompt", found.system_prompt);
    report.expect(found.style == styles.at(item.at("parser")), name + ": parser");
    report.expect(found.span_rule == rules.at(item.at("span_rule")), name + ": span_rule");
    report.expect(found.enable_thinking == item.at("thinking").get<bool>(), name + ": thinking");
    const OrderedJson& ignored = item.at("ignored");
    report.equal(
        name + ": ignored", found.ignored,
        ignored.is_null() ? std::vector<std::string>() : ignored.get<std::vector<std::string>>());
  }
}

/// The tokenizers of the cases. Of one whose vocabulary is not here only the special tokens that
/// templates print are known.
class Tokenizers {
 public:
  explicit Tokenizers(const std::filesystem::path& chat_folder)
      : folders_{chat_folder.parent_path() / "tokenizer",
                 std::filesystem::path(DFLASH_GOLDEN_DEFAULT) / "tokenizer"} {}

  const Tokenizer* find(const std::string& name) {
    if (!known_.contains(name))
      for (const auto& folder : folders_)
        if (std::filesystem::exists(folder / name / "tokenizer.json")) {
          known_.emplace(name, Tokenizer(folder / name));
          break;
        }
    const auto found = known_.find(name);
    return found == known_.end() ? nullptr : &found->second;
  }

  const Tokenizer& without_vocabulary(const std::string& name) {
    const auto found = empty_.find(name);
    if (found != empty_.end()) return found->second;
    TokenizerDefinition definition;
    definition.source = name;
    if (name.starts_with("llama3"))
      definition.special_tokens = {{"bos_token", "<|begin_of_text|>"}, {"eos_token", "<|eot_id|>"}};
    else if (name.starts_with("qwen"))
      definition.special_tokens = {{"eos_token", "<|im_end|>"}};
    return empty_.emplace(name, Tokenizer(std::move(definition))).first->second;
  }

 private:
  std::vector<std::filesystem::path> folders_;
  std::map<std::string, Tokenizer> known_, empty_;
};

void run_case(const OrderedJson& item, const std::map<std::string, std::string>& jinja,
              Tokenizers& tokenizers, Report& report) {
  const std::string name = item.at("tokenizer"), label = "case " + item.at("id").dump();
  const Tokenizer* tokenizer = tokenizers.find(name);
  const Chat chat(tokenizer != nullptr ? *tokenizer : tokenizers.without_vocabulary(name),
                  named_chat_template(item.at("template").get<std::string>()), jinja);
  std::string text;
  if (item.contains("text_given")) {
    text = item["text_given"];
  } else {
    Conversation conversation;
    conversation.messages = jinja::value_of(item.at("conversation")).list();
    if (item.contains("tools")) conversation.tools = jinja::value_of(item["tools"]);
    text = chat.render(conversation);
  }
  report.expect(text == item.at("text").get<std::string>(), label + ": text");
  if (tokenizer == nullptr)
    return report.skip(label + ": tokens of " + name + ", whose vocabulary is not here");
  ChatOptions options;
  options.max_length = item.at("max_length");
  options.last_turn_only = item.at("last_turn_only");
  const TokenizedSample sample = chat.tokenize_text(text, options);
  report.equal(label + ": tokens", sample.tokens,
               item.at("input_ids").get<std::vector<std::int32_t>>());
  report.equal(label + ": mask", sample.loss_mask, item.at("loss_mask").get<std::vector<int>>());
  int supervised = 0;
  bool two_in_a_row = false;
  for (std::size_t i = 0; i < sample.loss_mask.size(); ++i) {
    supervised += sample.loss_mask[i];
    two_in_a_row = two_in_a_row || (i > 0 && sample.loss_mask[i - 1] && sample.loss_mask[i]);
  }
  report.expect(supervised == item.at("supervised").get<int>(), label + ": supervised tokens");
  report.expect(two_in_a_row == item.at("two_in_a_row").get<bool>(), label + ": supervised pair");
}

}  // namespace

void run_chat(const std::filesystem::path& folder, Report& report) {
  if (std::filesystem::exists(folder / "templates.json"))
    run_templates(folder / "templates.json", report);
  if (!std::filesystem::exists(folder / "cases.json")) return;
  const OrderedJson json = read_ordered(folder / "cases.json");
  Tokenizers tokenizers(folder);
  for (const OrderedJson& item : json.at("cases")) {
    std::map<std::string, std::string> jinja;
    const std::string render = item.at("render");
    if (json.at("renderers").contains(render)) jinja["default"] = json["renderers"][render];
    try {
      run_case(item, jinja, tokenizers, report);
    } catch (const Error& error) {
      report.expect(false, "case " + item.at("id").dump() + ": " + error.what());
    }
  }
}

}  // namespace golden
