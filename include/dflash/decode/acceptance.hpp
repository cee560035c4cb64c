#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "dflash/core/config.hpp"
#include "dflash/core/error.hpp"

namespace dflash {

/// How far a target followed its draft. A cycle is one target forward after the prefill: it takes
/// the block's K - 1 proposed tokens as far as they are right, and adds one of the target's own.
class AcceptanceStatistics {
 public:
  /// For blocks of K rows.
  explicit AcceptanceStatistics(index_t block_size) {
    expects(block_size >= 1, "AcceptanceStatistics: a block has at least one row");
    histogram_.resize(std::size_t(block_size));
  }

  /// A cycle that took the first `accepted` proposed tokens.
  void add_cycle(index_t accepted) {
    expects(accepted >= 0 && accepted < index_t(histogram_.size()),
            "AcceptanceStatistics: more tokens accepted than a block proposes");
    ++histogram_[std::size_t(accepted)];
    ++cycles_, ++answer_cycles_;
    taken_ += accepted + 1, answer_taken_ += accepted + 1;
  }

  /// Closes an answer of `tokens` new tokens, whose cycles were added before.
  void add_answer(index_t tokens) {
    expects(tokens >= 0, "AcceptanceStatistics: an answer of a negative length");
    tokens_ += tokens;
    ++answers_;
    if (answer_cycles_ > 0) {
      sum_of_means_ += double(answer_taken_) / double(answer_cycles_);
      ++answers_with_cycles_;
    }
    answer_cycles_ = answer_taken_ = 0;
  }

  /// Adds what was counted elsewhere, in closed answers.
  void add(const AcceptanceStatistics& other) {
    expects(histogram_.size() == other.histogram_.size(),
            "AcceptanceStatistics: other blocks cannot be added");
    expects(other.answer_cycles_ == 0, "AcceptanceStatistics: an answer is not closed");
    for (std::size_t i = 0; i < histogram_.size(); ++i) histogram_[i] += other.histogram_[i];
    cycles_ += other.cycles_, taken_ += other.taken_;
    tokens_ += other.tokens_, answers_ += other.answers_;
    sum_of_means_ += other.sum_of_means_, answers_with_cycles_ += other.answers_with_cycles_;
  }

  index_t cycles() const { return cycles_; }
  index_t tokens() const { return tokens_; }  // delivered, cut at limits and stop tokens
  index_t answers() const { return answers_; }

  /// Mean of accepted + 1 over all cycles, the last of an answer in full. 0 without a cycle.
  double acceptance_length() const { return cycles_ > 0 ? double(taken_) / double(cycles_) : 0; }

  /// The mean over answers of each answer's own mean.
  double acceptance_length_of_answers() const {
    return answers_with_cycles_ > 0 ? sum_of_means_ / double(answers_with_cycles_) : 0;
  }

  /// Cycles that accepted 0, 1 .. K - 1 tokens.                                            (K)
  const std::vector<index_t>& histogram() const { return histogram_; }

  /// Of slots 1 .. K - 1: the share of cycles that accept it among those that accept all slots
  /// before. 0 where no cycle came so far.                                             (K - 1)
  std::vector<double> acceptance_by_position() const {
    std::vector<double> share;
    index_t reached = cycles_;
    for (std::size_t slot = 1; slot < histogram_.size(); ++slot) {
      const index_t accepting = reached - histogram_[slot - 1];
      share.push_back(reached > 0 ? double(accepting) / double(reached) : 0);
      reached = accepting;
    }
    return share;
  }

  /// All of it; target_forwards are those after the prefills.
  nlohmann::json to_json() const {
    return {{"acceptance_length", acceptance_length()},
            {"acceptance_length_of_answers", acceptance_length_of_answers()},
            {"acceptance_by_position", acceptance_by_position()},
            {"acceptance_histogram", histogram_},
            {"tokens", tokens_},
            {"target_forwards", cycles_},
            {"answers", answers_}};
  }

 private:
  std::vector<index_t> histogram_;
  index_t cycles_ = 0, taken_ = 0, tokens_ = 0, answers_ = 0;
  index_t answer_cycles_ = 0, answer_taken_ = 0;  // of the answer that is open
  double sum_of_means_ = 0;
  index_t answers_with_cycles_ = 0;
};

}  // namespace dflash
