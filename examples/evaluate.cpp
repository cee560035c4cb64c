// Measures a draft by real speculative decoding of its target:
//   evaluate --target-model-path T --draft-model-path D --data-path prompts.jsonl

#include <iostream>

#include "device.hpp"
#include "flag_checks.hpp"
#include "guarded.hpp"
#include "tokenized_data.hpp"

using namespace dflash;
using B = examples::Device::Backend;

namespace {

struct Options {
  std::filesystem::path target, draft, data;
  std::string chat_template, show;
  examples::Device device;
  index_t max_new_tokens = 128, limit = 0;
  std::optional<std::int32_t> mask_token_id;
  double temperature = 0, draft_temperature = 0;
  std::uint64_t seed = 42;
  bool json = false, published_sliding = false, skip_greedy = false;
  int threads = 0;
  examples::TargetStorage storage;

  void add_to(CLI::App& app) {
    app.add_option("--target-model-path", target, "Hugging Face folder of the target")->required();
    app.add_option("--draft-model-path", draft, "folder of the draft, of ours or published")
        ->required();
    app.add_option("--data-path", data, "JSON lines of conversations; answers are left out")
        ->required();
    app.add_option("--chat-template", chat_template, "default: the tokenizer's own");
    app.add_option("--max-new-tokens", max_new_tokens, "of an answer, at most")
        ->capture_default_str()
        ->check(examples::above_zero());
    app.add_option("--limit", limit, "use no more prompts than this; 0: all")
        ->capture_default_str()
        ->check(examples::not_below_zero());
    app.add_option("--temperature", temperature, "0: greedy")
        ->capture_default_str()
        ->check(examples::not_below_zero());
    app.add_option("--draft-temperature", draft_temperature, "of the proposals when sampling")
        ->capture_default_str()
        ->check(examples::not_below_zero());
    app.add_option("--seed", seed, "of sampling")->capture_default_str();
    app.add_option("--mask-token-id", mask_token_id, "default: the draft config's");
    app.add_flag("--published-sliding", published_sliding,
                 "run sliding layers as the published decoders do: without the window");
    app.add_flag("--skip-greedy", skip_greedy, "do not compare with plain decoding");
    app.add_option("--show", show, "answer this question at the end, accepted tokens in colour");
    app.add_flag("--json", json, "print one JSON object only")->excludes("--show");
    storage.add_to(app);
    app.add_option("--threads", threads, "0: one per core")
        ->capture_default_str()
        ->check(examples::not_below_zero());
    device.add_to(app);
  }
};

/// What all prompts together gave.
struct Totals {
  AcceptanceStatistics statistics;
  index_t prompts = 0, identical = 0, plain_tokens = 0;
  double seconds = 0, plain_seconds = 0;
};

/// The tokens of a conversation; errors name the file and the line.
std::vector<std::int32_t> prompt_of(const ConversationRow& row, const Chat& chat,
                                    const ConversationReader& reader) {
  if (row.kind != ConversationRow::Kind::messages) reader.fail("has no conversation");
  try {
    return chat.prompt(row.conversation);
  } catch (const Error& error) {
    reader.fail(error.what());
  }
}

/// The answer with the draft's accepted tokens in green.
void show_answer(const Chat& chat,
                 SpeculativeDecoder<DraftModel<DFlashBlock<LocalAttention<B>>>>& decoder,
                 const DecodeOptions& decode, const std::string& question) {
  Conversation conversation;
  conversation.messages.push_back(
      jinja::value_of(nlohmann::ordered_json{{"role", "user"}, {"content", question}}));
  const auto answer = decoder.decode(chat.prompt(conversation), decode);
  const bool color = is_terminal(stdout);
  std::printf("\n%s\n  ", question.c_str());
  std::vector<std::int32_t> tokens;
  std::size_t printed = 0;
  for (std::size_t i = 0; i < answer.tokens.size(); ++i) {
    tokens.push_back(answer.tokens[i]);
    const std::string text = chat.tokenizer().decode(tokens, true);
    // A character of several tokens is U+FFFD until the last of them.
    if (i + 1 < answer.tokens.size() && text.ends_with("\xEF\xBF\xBD")) continue;
    const std::string piece = text.substr(printed);
    printed = text.size();
    const char* open = color ? "\033[32m" : "[";
    const char* close = color ? "\033[0m" : "]";
    if (piece.empty()) continue;
    if (answer.drafted[i]) {
      std::printf("%s%s%s", open, piece.c_str(), close);
    } else {
      std::printf("%s", piece.c_str());
    }
  }
  std::printf(
      "\n  (%s: proposed by the draft and accepted; %zu tokens in %zu passes of the target)\n",
      color ? "green" : "in brackets", answer.tokens.size(), answer.cycles.size() + 1);
}

}  // namespace

int main(int argc, char** argv) {
  return examples::guarded("evaluate", [&] {
    CLI::App app("Measures the acceptance length of a DFlash draft by speculative decoding.",
                 "evaluate");
    app.failure_message(examples::flag_failure);
    Options options;
    options.add_to(app);
    CLI11_PARSE(app, argc, argv);

    B backend = options.device.backend(options.threads > 0
                                           ? options.threads
                                           : std::max(1, int(std::thread::hardware_concurrency())));
    const TargetModel<B> target(backend, options.target, options.storage);
    const DraftConfig config = DraftConfig::read(options.draft);
    if (config.target_layers != target.config().layers)
      throw Error(options.draft.string() + ": num_target_layers is " +
                  std::to_string(config.target_layers) + ", but the target has " +
                  std::to_string(target.config().layers) + " layers");
    const auto weights = read_parameters(backend, config, options.draft);
    LocalAttention attention(backend);
    DFlashBlock block(attention, config.shape);
    DraftModel model(block, config);
    const Tokenizer tokenizer(options.target);
    const Chat chat = chat_for(tokenizer, options.chat_template);
    MaskTokenSources mask{.given = options.mask_token_id, .vocabulary = target.config().vocabulary};
    mask.draft_config = config.mask_token;
    mask.tokenizer_mask = tokenizer.special_token_id("mask_token");
    SpeculativeDecoder decoder(
        target, model, weights, resolve_mask_token(mask),
        options.published_sliding ? SlidingLayers::as_published : SlidingLayers::as_trained);

    DecodeOptions decode{.max_new_tokens = options.max_new_tokens,
                         .stop_tokens = target.config().stop_tokens,
                         .temperature = options.temperature,
                         .draft_temperature = options.draft_temperature,
                         .seed = options.seed};
    const bool compare = !options.skip_greedy && options.temperature == 0;
    Totals totals{AcceptanceStatistics(config.block_size)};
    ConversationReader reader(options.data);
    ProgressLine progress(std::cerr, is_terminal(stderr));
    while (options.limit == 0 || totals.prompts < options.limit) {
      const auto row = reader.next();
      if (!row) break;
      const auto prompt = prompt_of(*row, chat, reader);
      decode.answer = std::uint64_t(totals.prompts++);
      double start = seconds_now();
      const SpeculativeAnswer answer = decoder.decode(prompt, decode);
      totals.seconds += seconds_now() - start;
      for (const DecodeCycle& cycle : answer.cycles) totals.statistics.add_cycle(cycle.accepted);
      totals.statistics.add_answer(index_t(answer.tokens.size()));
      if (compare) {
        start = seconds_now();
        const auto plain =
            greedy(target, std::span(prompt), decode.max_new_tokens, decode.stop_tokens);
        totals.plain_seconds += seconds_now() - start;
        totals.plain_tokens += index_t(plain.size());
        totals.identical += plain == answer.tokens ? 1 : 0;
      }
      const double now = seconds_now();
      if (progress.due(now) && (progress.terminal() || !options.json))
        progress.show(std::to_string(totals.prompts) + " prompts, acceptance length " +
                          std::to_string(totals.statistics.acceptance_length()),
                      now);
    }
    progress.finish();
    if (totals.prompts == 0) throw Error(options.data.string() + " has no prompts");

    nlohmann::json result = totals.statistics.to_json();
    result["prompts"] = totals.prompts;
    result["tokens_per_second"] = double(totals.statistics.tokens()) / totals.seconds;
    if (compare) {
      result["identical_to_greedy"] = totals.identical == totals.prompts;
      result["identical_answers"] = totals.identical;
      result["greedy_tokens_per_second"] = double(totals.plain_tokens) / totals.plain_seconds;
    }
    if (options.json) {
      std::printf("%s\n", result.dump().c_str());
    } else {
      std::printf("acceptance length %.3f tokens per pass of the target (%td tokens, %td passes)\n",
                  totals.statistics.acceptance_length(), totals.statistics.tokens(),
                  totals.statistics.cycles());
      std::printf("acceptance by position:");
      for (const double share : totals.statistics.acceptance_by_position())
        std::printf(" %.3f", share);
      std::printf("\nspeculative decoding %.0f tokens/s",
                  result["tokens_per_second"].get<double>());
      if (compare)
        std::printf(", plain %.0f tokens/s; %td of %td answers identical to plain greedy decoding",
                    result["greedy_tokens_per_second"].get<double>(), totals.identical,
                    totals.prompts);
      std::printf("\n");
    }
    if (!options.show.empty()) show_answer(chat, decoder, decode, options.show);
    return examples::Device::rows_keep_bits && compare && totals.identical != totals.prompts ? 1
                                                                                             : 0;
  });
}
