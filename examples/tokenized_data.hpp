#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dflash/any_backend.hpp"
#include "dflash/text.hpp"
#include "flag_checks.hpp"

namespace examples {

using dflash::index_t;

/// How the target's matrices lie in memory.
struct TargetStorage {
  std::string name = "as-stored";

  void add_to(CLI::App& app) {
    app.add_option("--target-weights", name,
                   "in memory: as-stored, wide (no narrower than products need) or int8 (rounded)")
        ->check(one_of(dflash::weight_storages))
        ->capture_default_str();
  }
  /// What it adds to the precision of what the target computes.
  const char* rounding() const { return name == "int8" ? ", weights in int8" : ""; }
  operator dflash::WeightStorage() const { return dflash::weight_storages.named(name); }
};

/// How conversations become samples: the flags that the generator and the online trainer share.
struct DataOptions {
  std::filesystem::path path;
  std::string chat_template, filter = "min-loss";
  index_t max_length = 2048, num_samples = 0;
  bool is_preformatted = false, last_turn_only = false, skip_bad_lines = false;

  void add_to(CLI::App& app, const char* path_flag, index_t default_max_length) {
    max_length = default_max_length;
    app.add_option(path_flag, path,
                   "JSON lines: conversations, preformatted text, or input_ids and loss_mask")
        ->required();
    app.add_option("--chat-template", chat_template,
                   "name of a template; default: the tokenizer's own");
    app.add_option("--max-length", max_length, "tokens of a sample, the rest is cut off")
        ->capture_default_str()
        ->check(above_zero());
    app.add_option("--sample-filter", filter,
                   "min-loss: two blocks' worth of supervised tokens in whole blocks; "
                   "adjacent-pair: two neighbouring ones")
        ->check(one_of(dflash::sample_filters))
        ->capture_default_str();
    app.add_option("--num-samples", num_samples, "read no more samples than this; 0: all")
        ->capture_default_str()
        ->check(not_below_zero());
    app.add_flag("--is-preformatted", is_preformatted, "every line has \"text\", already rendered");
    app.add_flag("--train-only-last-turn", last_turn_only,
                 "supervise the last answer of a conversation alone");
    app.add_flag("--skip-bad-lines", skip_bad_lines, "count lines that fail instead of stopping");
  }
};

/// The samples that are kept, in the order of the file, and why others were not.
struct TokenizedData {
  std::vector<dflash::TokenizedSample> samples;
  std::map<std::string, index_t> dropped;  // by reason
  index_t failed = 0;

  /// Of what is trained on: a resumed run must find the same.
  std::string fingerprint() const {
    dflash::Fingerprint print;
    for (const auto& sample : samples)
      print.add(sample.id)
          .add(sample.tokens.data(), index_t(sample.tokens.size() * sizeof(std::int32_t)))
          .add(sample.loss_mask.data(), index_t(sample.loss_mask.size()));
    return print.text();
  }
  void print() const {
    std::printf("samples: %zu kept, ", samples.size());
    index_t sum = 0;
    for (const auto& [reason, count] : dropped) sum += count;
    std::printf("%td dropped", sum);
    for (const auto& [reason, count] : dropped) std::printf(" (%td: %s)", count, reason.c_str());
    std::printf(", %td failed\n", failed);
  }
};

/// Reads, renders, tokenizes and filters. `vocabulary` is the target's.
inline TokenizedData read_samples(const DataOptions& options, const dflash::Tokenizer& tokenizer,
                                  dflash::FilterOptions filter, index_t vocabulary) {
  filter.filter = dflash::sample_filters.named(options.filter);
  const dflash::Chat chat = dflash::chat_for(tokenizer, options.chat_template);
  dflash::SampleOptions sample_options;
  sample_options.max_length = options.max_length;
  sample_options.last_turn_only = options.last_turn_only;
  sample_options.is_preformatted = options.is_preformatted;
  dflash::SampleReader reader(options.path, chat, sample_options);
  TokenizedData data;
  for (index_t read = 0; options.num_samples == 0 || read < options.num_samples; ++read) {
    std::optional<dflash::TokenizedSample> sample;
    try {
      sample = reader.next();
      if (!sample) break;
      for (const std::int32_t token : sample->tokens)
        if (token >= vocabulary)
          throw dflash::Error(options.path.string() + ", line " + std::to_string(reader.line()) +
                              ": token " + std::to_string(token) +
                              " is outside the target's vocabulary of " +
                              std::to_string(vocabulary));
    } catch (const dflash::ReadError&) {
      throw;
    } catch (const dflash::Error& error) {
      if (!options.skip_bad_lines) throw;
      std::fprintf(stderr, "skipped: %s\n", error.what());
      ++data.failed;
      continue;
    }
    const auto reason = sample->tokens.empty() ? std::optional<std::string>("no tokens")
                                               : filter.reason_to_drop(sample->loss_mask);
    if (reason) {
      ++data.dropped[*reason];
    } else {
      data.samples.push_back(std::move(*sample));
    }
  }
  if (data.samples.empty()) {
    data.print();
    throw dflash::Error(options.path.string() + " gives no sample to train on");
  }
  return data;
}

/// The first of some samples, for the target to take together: at most so many and, beyond the
/// first, so many tokens.
inline dflash::Range next_pack(const std::vector<dflash::TokenizedSample>& samples,
                               dflash::Range of, index_t most_samples, index_t most_tokens) {
  const index_t begin = of.begin;
  index_t end = begin, tokens = 0;
  while (end < of.end && end - begin < most_samples) {
    tokens += index_t(samples[std::size_t(end)].tokens.size());
    if (end > begin && tokens > most_tokens) break;
    ++end;
  }
  return {begin, end};
}

/// The target's hidden states of some samples, laid end to end; offsets(i) is where sample i
/// begins.
template <class B>
struct CapturedPack {
  std::vector<index_t> offsets;
  dflash::TargetOutput<B> output;
};

template <class B, class C>
CapturedPack<B> capture(const dflash::TargetModel<B, C>& target,
                        std::span<const dflash::TokenizedSample> samples,
                        const std::vector<index_t>& layers, bool last_hidden = false) {
  CapturedPack<B> pack{{0}, {}};
  std::vector<std::int32_t> tokens;
  for (const auto& sample : samples) {
    tokens.insert(tokens.end(), sample.tokens.begin(), sample.tokens.end());
    pack.offsets.push_back(index_t(tokens.size()));
  }
  pack.output =
      target.prefill(tokens, pack.offsets, {.layers = layers, .last_hidden = last_hidden});
  return pack;
}

}  // namespace examples
