#pragma once

#include "dflash/comm/share.hpp"
#include "dflash/core/attention_rule.hpp"
#include "dflash/model/target_config.hpp"

namespace dflash {

/// What one of several ranks holds of a target. Heads, intermediate features and vocabulary are cut
/// into nearly equal ranges; nothing must divide anything, and a rank may get none. A key/value
/// head that heads of several ranks need lies on each of them.
struct TargetCut {
  Range heads, kv_heads, intermediate, vocabulary;
  HeadGroups groups;  // which key/value head serves which of the heads

  TargetCut(const TargetConfig& config, Share share)
      : heads(share.of(config.heads)),
        intermediate(share.of(config.intermediate)),
        vocabulary(share.of(config.vocabulary)),
        groups{config.heads / config.kv_heads, heads.begin} {
    if (heads.size() > 0)
      kv_heads = {heads.begin / groups.group, (heads.end - 1) / groups.group + 1};
  }

  /// Numbers in the weights that the rank holds.
  index_t weights(const TargetConfig& config) const {
    const index_t q = heads.size() * config.head_dim, kv = kv_heads.size() * config.head_dim,
                  inner = intermediate.size(), hidden = config.hidden;
    index_t layer = 2 * hidden + (config.head_norms ? 2 * config.head_dim : 0);
    layer += (2 * q + 2 * kv + 3 * inner) * hidden;
    if (config.qkv_bias) layer += q + 2 * kv;
    if (config.o_bias) layer += hidden;
    if (config.mlp_bias) layer += 2 * inner + hidden;
    return config.layers * layer + hidden + (config.tied_head ? 1 : 2) * vocabulary.size() * hidden;
  }
};

}  // namespace dflash
