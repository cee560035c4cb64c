// Kinds without arithmetic: layer ids, masks, anchors, filters.

#include <optional>
#include <set>
#include <span>

#include "dflash/core/attention_rule.hpp"
#include "dflash/data/blocks.hpp"
#include "dflash/data/sample_filter.hpp"
#include "dflash/model/target_layer_ids.hpp"
#include "golden.hpp"

using namespace dflash;

namespace golden {
namespace {

std::vector<std::uint8_t> bits(const std::string& text) {
  std::vector<std::uint8_t> mask;
  for (char c : text) mask.push_back(c == '1' ? 1 : 0);
  return mask;
}

}  // namespace

void run_layer_ids(const GoldenCase& c, Report& report) {
  for (const auto& [key, ids] : c.settings.at("table").items()) {
    const std::size_t comma = key.find(',');
    const index_t layers = std::stol(key.substr(0, comma)), n = std::stol(key.substr(comma + 1));
    report.equal(key, default_target_layer_ids(layers, n), ids.get<std::vector<index_t>>());
  }
}

void run_mask(const GoldenCase& c, Report& report) {
  for (const auto& item : c.settings.at("cases")) {
    const std::string prefix = c.prefix_of(item.at("index"), "anchors");
    const auto anchors = c.read<std::int64_t>(prefix + "anchors");
    const auto keep = c.read<std::uint8_t>(prefix + "keep");
    const auto expected = c.read<std::uint8_t>(prefix + "mask");
    const index_t rows = item.at("B"), s = item.at("S"), k = item.at("K"), n = item.at("N");
    const index_t window =
        item.contains("window") && !item["window"].is_null() ? item["window"].get<index_t>() : 0;
    const index_t real = item.contains("real_context_len") && !item["real_context_len"].is_null()
                             ? item["real_context_len"].get<index_t>()
                             : s;
    std::vector<std::uint8_t> actual(expected.size(), 0);
    for (index_t b = 0; b < rows; ++b) {
      std::vector<index_t> begin(std::size_t(n), 0), end;
      for (index_t j = 0; j < n; ++j)
        end.push_back(std::min<index_t>(anchors[std::size_t(b * n + j)], real));
      const BlockMask mask{{begin.data(), {n}}, {end.data(), {n}}, k, window};
      for (index_t j = 0; j < n; ++j) {
        if (keep[std::size_t(b * n + j)] == 0) continue;  // a dropped block sees nothing
        for (index_t o = 0; o < k; ++o) {
          std::uint8_t* row = actual.data() + ((b * n + j) * k + o) * (s + n * k);
          const Range seen = mask.context(j, o);
          for (index_t key = seen.begin; key < seen.end; ++key) row[key] = 1;
          const Range own = mask.own(j, o);
          for (index_t key = own.begin; key < own.end; ++key) row[s + key] = 1;
        }
      }
    }
    report.equal(prefix + item.value("name", std::string("mask")), actual, expected);
  }
}

void run_anchors(const GoldenCase& c, Report& report) {
  int index = 0;
  for (const auto& item : c.settings.at("cases")) {
    const std::string where = "case " + std::to_string(index++);
    BlockOptions options{.count = item.at("num_anchors"),
                         .size = item.value("block_size", 16),
                         .rule = AnchorRule::supervised_pair};
    const bool march = item.contains("block_size") || item.contains("single_row_error");
    if (march) options.rule = AnchorRule::supervised_start;
    std::vector<std::vector<index_t>> candidates;
    index_t most = 0;
    for (const auto& row : item.at("loss_mask")) {
      candidates.push_back(anchor_candidates(bits(row), options));
      most = std::max(most, index_t(candidates.back().size()));
    }
    std::vector<index_t> kept;
    index_t n = 0;
    for (const auto& row : candidates) {
      kept.push_back(anchor_count(options, index_t(row.size()), most));
      n = std::max(n, kept.back());
    }
    report.expect(n == item.at("n").get<index_t>(), where + ": blocks per row");
    report.expect((n == 0) == item.value("error", false), where + ": refused");
    if (n == 0) continue;
    if (item.contains("keep_count"))
      report.equal(where + ": kept", kept, item["keep_count"].get<std::vector<index_t>>());
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      // A row that the batch gives no block lists no position.
      const auto valid = item.at("valid")[i].get<std::vector<index_t>>();
      if (kept[i] > 0) report.equal(where + ": candidates", candidates[i], valid);

      // The sampler returns only candidates, as many as the rule says, ascending, and moves on with
      // the epoch.
      const auto mask = bits(item.at("loss_mask")[i]);
      const std::vector<std::int32_t> tokens(mask.size(), 7);
      const Sample sample{"row " + std::to_string(i),
                          {tokens.data(), {index_t(tokens.size())}},
                          {mask.data(), {index_t(mask.size())}},
                          nullptr};
      const index_t alone =
          anchor_count(options, index_t(candidates[i].size()), index_t(candidates[i].size()));
      std::set<index_t> seen;
      for (std::uint64_t epoch = 0; epoch < 50; ++epoch) {
        const Blocks blocks = sample_blocks(sample, options, 1, epoch);
        report.expect(blocks.count() == alone, where + ": count of the sampler");
        report.expect(std::is_sorted(blocks.anchors.begin(), blocks.anchors.end()),
                      where + ": order");
        seen.insert(blocks.anchors.begin(), blocks.anchors.end());
      }
      report.expect(
          std::includes(candidates[i].begin(), candidates[i].end(), seen.begin(), seen.end()),
          where + ": the sampler stays within the candidates");
    }
  }
}

void run_prepare_filter(const GoldenCase& c, Report& report) {
  for (const auto& item : c.settings.at("cases")) {
    const std::string text = item.at("loss_mask");
    const auto mask = bits(text);
    for (const auto& [key, value] : item.items()) {
      FilterOptions options;
      if (key == "keep") {
        options.filter = SampleFilter::adjacent_pair;
      } else if (key == "eagle3") {
        options.model_type = ModelType::eagle3;
      } else if (key.starts_with("dflash_k")) {
        std::size_t digits = 0;
        options.block_size = std::stol(key.substr(8), &digits);
        const std::string rest = key.substr(8 + digits);
        if (rest.starts_with("_min")) options.min_loss_tokens = std::stol(rest.substr(4));
      } else if (key == "has_adjacent_pair") {
        report.expect(has_adjacent_pair(mask) == value.get<bool>(), text + ": adjacent pair");
        continue;
      } else {
        continue;
      }
      report.expect(!options.reason_to_drop(mask).has_value() == value.get<bool>(),
                    text + ": " + key);
    }
  }
}

}  // namespace golden
