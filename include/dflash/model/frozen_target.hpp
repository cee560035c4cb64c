#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dflash/comm/share.hpp"
#include "dflash/io/in_quotes.hpp"
#include "dflash/io/json_file.hpp"
#include "dflash/io/weights_folder.hpp"
#include "dflash/model/load_frozen.hpp"
#include "dflash/model/vocabulary_parallel.hpp"
#include "dflash/model/weight_source.hpp"

namespace dflash {

/// What a target calls the two matrices that a draft shares.
struct TargetKeys {
  std::string embedding = "model.embed_tokens.weight";
  std::string lm_head = "lm_head.weight";
};

/// Which rows of a vocabulary's matrices a rank holds; by default all.
struct VocabularyShares {
  Share embedding, lm_head;
};

/// Whether a target's head is its embedding, from its config.json. Targets that do more than text
/// keep their decoder's fields in text_config.
inline bool has_tied_head(const std::filesystem::path& path) {
  const nlohmann::json config = read_json(path);
  return optional<bool>(config, "tie_word_embeddings", path,
                        optional<bool>(config, "text_config.tie_word_embeddings", path, false));
}

/// The frozen ends of a target that its draft shares: token embedding and language-model head.
/// Training from stored features needs nothing else of the target, whatever its layers are.
template <Backend B>
class FrozenTarget {
 public:
  using T = typename B::value_type;

  /// Loads them from a Hugging Face model folder. Error naming the file and the tensor.
  FrozenTarget(B& backend, const std::filesystem::path& folder, const TargetKeys& keys = {},
               const VocabularyShares& shares = {})
      : FrozenTarget(backend, WeightsFolder(folder), has_tied_head(folder / "config.json"), keys,
                     {}, shares) {}

  /// Loads them from other weights. If `tied`, the head is the embedding; the shape of both is that
  /// of the embedding in the file, or `shape` where it must be that.               shape (V, H)
  template <WeightSource W>
  FrozenTarget(B& backend, const W& weights, bool tied, const TargetKeys& keys = {},
               std::vector<index_t> shape = {}, const VocabularyShares& shares = {},
               WeightStorage storage = WeightStorage::as_stored) {
    if (shape.empty()) shape = weights.at(keys.embedding).shape;
    if (shape.size() != 2)
      throw Error("the target's embedding " + in_quotes(keys.embedding) + " has " +
                  std::to_string(shape.size()) + " dimensions where 2 are expected");
    const index_t extents[] = {shape[0], shape[1]};
    vocabulary_ = shape[0];
    embedding_rows_ = shares.embedding.of(vocabulary_);
    lm_head_rows_ = shares.lm_head.of(vocabulary_);
    const auto load = [&](const std::string& name, Range rows) {
      return load_frozen(backend, weights, name, extents, {rows, {0, shape[1]}}, storage);
    };
    embedding_ = load(keys.embedding, embedding_rows_);
    shared_ = tied && embedding_rows_.begin <= lm_head_rows_.begin &&
              lm_head_rows_.end <= embedding_rows_.end;
    if (!shared_) lm_head_ = load(tied ? keys.embedding : keys.lm_head, lm_head_rows_);
  }

  // Both (V, H), of a share its rows.
  StoredRows<const T> embedding() const { return embedding_.rows(); }
  StoredRows<const T> lm_head() const {
    if (!shared_) return lm_head_.rows();
    return embedding().rows(
        {lm_head_rows_.begin - embedding_rows_.begin, lm_head_rows_.end - embedding_rows_.begin});
  }
  VocabularySlice<T> embedding_slice() const {
    return {embedding(), embedding_rows_.begin, vocabulary_};
  }
  VocabularySlice<T> lm_head_slice() const { return {lm_head(), lm_head_rows_.begin, vocabulary_}; }
  index_t vocabulary() const { return vocabulary_; }       // V
  index_t hidden() const { return embedding().shape[1]; }  // H

 private:
  StoredTensor<B> embedding_, lm_head_;
  index_t vocabulary_ = 0;
  Range embedding_rows_, lm_head_rows_;  // that are here
  bool shared_ = false;                  // the head's rows are among the embedding's
};

}  // namespace dflash
