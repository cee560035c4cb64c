#pragma once

#include <utility>

#include "dflash/comm/sequence_parallel_group.hpp"
#include "dflash/data/batch.hpp"
#include "dflash/model/draft_model.hpp"
#include "dflash/train/vocabulary_parallel_loss.hpp"

namespace dflash {

/// This rank's part of one micro-step: the loss of its blocks of its replica's batch, and the
/// gradients of that loss's numerator, added or written; is_final(i) is called when that is done
/// for bucket i of gradient_buckets, in their order. All ranks call it, one whose batch is empty
/// too: it holds rows of the target's embedding and head that others of its target group need. The
/// head is a VocabularySlice or a PreparedSlice.
template <class Model, Backend B, Communicator C, class Head, class IsFinal = IgnoreBuckets>
LossResult micro_step(const Model& model, SequenceParallelGroup<C>& group,
                      TensorParallelGroup<C>& target_group,
                      VocabularySlice<typename B::value_type> embedding, const Head& head,
                      const Batch<B>& batch, const LossOptions& options,
                      const Parameters<B>& weights, Gradients<B>& gradients,
                      const IsFinal& is_final = {}, Result result = Result::added) {
  using Matrix = Tensor<B, typename B::value_type, 2>;
  B& backend = model.backend();
  const DraftConfig& config = model.config();
  Matrix x(backend, {batch.tokens.size(), config.shape.hidden}),
      doutput(backend, {batch.tokens.size(), config.shape.hidden});
  gather_own_vocabulary_rows(backend, target_group, embedding, batch.tokens.view(), x.view());
  typename Model::Saved saved;
  if (batch.samples == 0)
    saved.output = std::move(x);
  else
    model.forward_embedded(weights, std::move(x), batch, saved);
  const LossResult loss = vocabulary_parallel_draft_loss(
      backend, target_group, head, saved.output.view(), batch.labels, batch.weights,
      config.block_size, group.rank() == 0 ? batch.samples : 0, options, doutput.view());
  if (batch.samples > 0) {
    model.backward(weights, batch, saved, doutput.view(), gradients, is_final, result);
    return loss;
  }
  if (result == Result::written) fill(backend, gradients.flat(), 0);
  for (index_t i = 0; i <= config.layers; ++i) is_final(i);
  return loss;
}

}  // namespace dflash
