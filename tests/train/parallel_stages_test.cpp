// The path of a batch over the ranks of a sequence group, stage by stage, against plain loops over
// the samples and against one rank.

#include "train/parallel_stages.hpp"

namespace parallel_stages_test {

using namespace dflash;
using namespace parallel_stages;

using Matrix = Tensor<B, double, 2>;

/// Heads normalised and rotated, in two steps.
Matrix rotated(B& cpu, Matrix& raw, In<double, 1> norm, const Model::RopeTables& rope_of_rows,
               const DFlashShape& shape) {
  const index_t rows = raw.view().shape[0], width = raw.view().shape[1], dim = shape.head_dim;
  Matrix out(cpu, {rows, width});
  Tensor<B, double, 1> rstd(cpu, {rows * width / dim});
  rms_norm(cpu, per_head(raw.view(), dim), norm, shape.eps, per_head(out.view(), dim), rstd.view());
  rope(cpu, rope_of_rows.cos.view(), rope_of_rows.sin.view(), Rotate::forward,
       as_heads(out.view(), dim));
  return out;
}
Matrix normalised(B& cpu, Matrix& x, In<double, 1> w, double eps) {
  Matrix y(cpu, {x.view().shape[0], x.view().shape[1]});
  Tensor<B, double, 1> rstd(cpu, {x.view().shape[0]});
  rms_norm(cpu, x.view(), w, eps, y.view(), rstd.view());
  return y;
}
Matrix values_of(B& cpu, In<double, 2> x, In<double, 2> w, In<double, 1> bias) {
  Matrix v(cpu, {x.shape[0], w.shape[0]});
  linear(cpu, x, w, v.view());
  add_rows(cpu, bias, v.view());
  return v;
}

/// What a rank computes on its way through the model, by stage.
void record(Problem& p, B& cpu, Whole& whole, const Group& group, const Batch<B>& batch,
            Model::Saved& s) {
  const auto blocks = [&](const std::string& name, const Matrix& own) {
    whole.add_blocks(name, group, batch.blocks_total, batch.block_size, own.view());
  };
  const auto context = [&](const std::string& name, In<double, 2> own) {
    whole.add_context(name, group, batch.context_total, own);
  };
  context("context fused", s.fused.view());
  context("context normalised", s.context.rows());
  for (std::size_t i = 0; i < s.layers.size(); ++i) {
    const std::string at = "layer " + std::to_string(i) + " ";
    auto& layer = s.layers[i];
    auto& keys = s.context_layers[i];
    const auto& w = (*p.one.weights).layers[i];
    const DFlashShape& shape = p.config.shape;
    context(at + "context k projected", keys.k.raw.view());
    context(at + "context k after RoPE",
            rotated(cpu, keys.k.raw, w.k_norm, s.context_rope, shape).view());
    context(at + "context v projected", values_of(cpu, s.context.rows(), w.v, w.v_bias).view());
    blocks(at + "q projected", layer.q.raw);
    blocks(at + "q after RoPE", rotated(cpu, layer.q.raw, w.q_norm, s.block_rope, shape));
    blocks(at + "k projected", layer.k.raw);
    blocks(at + "k after RoPE", rotated(cpu, layer.k.raw, w.k_norm, s.block_rope, shape));
    Matrix normed = normalised(cpu, s.x[i], w.input_norm, shape.eps);
    blocks(at + "v projected", values_of(cpu, normed.view(), w.v, w.v_bias));
    blocks(at + "attention", layer.attended);
    blocks(at + "output", s.x[i + 1]);
  }
  blocks("output", s.output);
}

/// Forward, loss and backward on every rank; `look` sees each rank's state before backward.
template <class Look>
void run_model(Problem& p, SequenceLayout layout, Whole& whole, Look&& look) {
  on_ranks(p, layout, [&](B& cpu, Group& group, const Batch<B>& batch) {
    UlyssesAttention attention(cpu, group);
    Model model(DFlashBlock(attention, p.config.shape), p.config);
    Model::Saved saved;
    model.forward(p.one.weights, p.one.embedding(), batch, saved);
    record(p, cpu, whole, group, batch, saved);
    look(group, saved);
    Tensor<B, double, 2> doutput(cpu, {batch.tokens.size(), p.config.shape.hidden});
    const LossResult loss = draft_loss(
        cpu, p.one.head(), saved.output.view(), batch.labels, batch.weights, p.block_size(),
        group.rank() == 0 ? batch.samples : 0, {.gamma = 4}, doutput.view());
    whole.add_blocks("gradient of the output", group, batch.blocks_total, batch.block_size,
                     doutput.view());
    auto numbers = loss.flat();
    whole.add_sum("loss", {numbers.data(), {index_t(numbers.size())}});
    auto gradients = zero_gradients(cpu, p.config);
    model.backward(p.one.weights, batch, saved, doutput.view(), gradients);
    for (const ParameterSlot& slot : gradients.slots())
      whole.add_sum("gradient of " + slot.name, {gradients.flat().data + slot.offset, {slot.size}});
  });
}

TEST_CASE("Noise blocks: an anchor's token, then masks, at positions from the anchor on") {
  Problem p;
  const auto blocks = all_blocks(p);
  for (const SequenceLayout& layout : layouts)
    on_ranks(p, layout, [&](B&, Group& group, const Batch<B>& batch) {
      CHECK(batch.blocks_total == index_t(blocks.size()));
      const Range own = even_cut(index_t(blocks.size()), layout.ranks(), group.rank());
      REQUIRE(batch.tokens.size() == own.size() * p.block_size());
      for (index_t n = own.begin; n < own.end; ++n)
        for (index_t slot = 0; slot < p.block_size(); ++slot) {
          const auto [sample, anchor] = blocks[std::size_t(n)];
          const index_t row = (n - own.begin) * p.block_size() + slot;
          CHECK(batch.tokens.view()(row) == (slot == 0
                                                 ? p.sample(sample).text.tokens[std::size_t(anchor)]
                                                 : *p.config.mask_token));
          CHECK(batch.block_position.view()(row) == anchor + slot);
        }
    });
}

TEST_CASE("Labels are the tokens after the anchor, weights 1 where those are supervised") {
  Problem p;
  const auto blocks = all_blocks(p);
  for (const SequenceLayout& layout : layouts)
    on_ranks(p, layout, [&](B&, Group& group, const Batch<B>& batch) {
      const Range own = even_cut(index_t(blocks.size()), layout.ranks(), group.rank());
      for (index_t n = own.begin; n < own.end; ++n)
        for (index_t slot = 0; slot < p.block_size(); ++slot) {
          const auto [sample, anchor] = blocks[std::size_t(n)];
          const auto& text = p.sample(sample).text;
          const auto row = std::size_t((n - own.begin) * p.block_size() + slot),
                     position = std::size_t(anchor + slot);
          const bool inside = position < text.tokens.size();
          CHECK(batch.weights[row] ==
                (slot > 0 && inside && text.loss_mask[position] != 0 ? 1 : 0));
          if (batch.weights[row] > 0) CHECK(batch.labels[row] == text.tokens[position]);
        }
    });
}

TEST_CASE("Masks: the stripes of a ring together show each row the keys that plain rules allow") {
  Problem p;
  const auto blocks = all_blocks(p), context = all_context(p);
  const index_t k = p.block_size(), rows = index_t(context.size());
  for (const SequenceLayout& layout : layouts)
    for (const index_t window : {index_t(0), index_t(1), index_t(4), index_t(70)})
      on_ranks(p, layout, [&](B&, Group& group, const Batch<B>& batch) {
        if (group.rank() % layout.ulysses != 0) return;  // the ranks of a ring index see the same
        BlockMask mask = batch.mask();
        mask.window = window;
        mask.stripe = layout.stripe(group.rank());
        mask.own_blocks = layout.ring_blocks(group.rank(), batch.blocks_total);
        REQUIRE(batch.context_total == rows);
        for (index_t n = 0; n < batch.blocks_total; ++n)
          for (index_t slot = 0; slot < k; ++slot) {
            const auto [sample, anchor] = blocks[std::size_t(n)];
            std::vector<index_t> seen, allowed;
            const Range here = mask.context(n, slot);
            for (index_t at = here.begin; at < here.end; ++at)
              seen.push_back(mask.stripe.global(at));
            for (index_t row = 0; row < rows; ++row) {
              const Key key = context[std::size_t(row)];
              const bool in_window = window == 0 || anchor + slot - key.position < window;
              if (key.sample == sample && key.position < anchor && in_window &&
                  row / RingStripe::rows % layout.ring == mask.stripe.index)
                allowed.push_back(row);
            }
            CHECK(seen == allowed);
            const Range own = mask.own(n, slot);
            if (n < mask.own_blocks.begin || n >= mask.own_blocks.end) {
              CHECK(own.size() == 0);
            } else {
              CHECK(own.begin == (n - mask.own_blocks.begin) * k);
              CHECK(own.size() == (window == 0 ? k : slot + 1));
            }
          }
      });
}

TEST_CASE("Every stage of the model and every gradient is that of one rank, on every layout") {
  Problem p;
  Whole one;
  run_model(p, {1, 1}, one, [](auto&, auto&) {});
  CHECK(one.values().size() > 40);
  const DFlashShape& shape = p.config.shape;
  const index_t dim = shape.head_dim, kv_width = shape.kv_heads * dim;
  for (const SequenceLayout& layout : layouts) {
    if (layout.ranks() == 1) continue;
    CAPTURE(layout.ulysses);
    CAPTURE(layout.ring);
    Whole many;
    run_model(p, layout, many, [&](Group& group, Model::Saved& saved) {
      // Scattered: a rank's heads of all block rows, of its ring index's keys and of its stripe.
      const index_t me = group.rank(), blocks = index_t(all_blocks(p).size()),
                    rows = index_t(all_context(p).size());
      const UlyssesPlan plan{layout,         shape.heads, shape.kv_heads, dim,
                             p.block_size(), rows,        blocks};
      std::vector<index_t> stripe, ring;
      for (index_t row = 0; row < rows; ++row)
        if (row / RingStripe::rows % layout.ring == me / layout.ulysses) stripe.push_back(row);
      const Range near = layout.ring_blocks(me, blocks);
      for (index_t row = near.begin * p.block_size(); row < near.end * p.block_size(); ++row)
        ring.push_back(row);
      for (std::size_t i = 0; i < saved.layers.size(); ++i) {
        const std::string at = "layer " + std::to_string(i) + " ";
        const auto of = [&](const std::string& name) { return one.values().at(at + name); };
        const auto keys = [&](const std::string& name, const std::vector<index_t>& some) {
          return heads_of(rows_of(of(name), kv_width, some), shape.kv_heads, plan.key_heads(me),
                          dim);
        };
        auto& attention = saved.layers[i].attention;
        auto& context = saved.context_layers[i].attention;
        const double off = std::max(
            {difference(heads_of(of("q after RoPE"), shape.heads, plan.query_heads(me), dim),
                        host(attention.q.view())),
             difference(keys("k after RoPE", ring), host(attention.k.view())),
             difference(keys("v projected", ring), host(attention.v.view())),
             difference(keys("context k after RoPE", stripe), host(context.k.view())),
             difference(keys("context v projected", stripe), host(context.v.view()))});
        CHECK(off <= 1e-13);
      }
    });
    check_equal(many, one);
  }
}

TEST_CASE(
    "Attention alone: outputs and the gradients of queries, keys and context, scattered too") {
  Problem p;
  const index_t heads = 6, kv = 3, dim = 4;
  const index_t blocks = index_t(all_blocks(p).size()), rows = index_t(all_context(p).size());
  const auto random = [&](std::uint64_t stream, index_t n) {
    const Random source(91, stream);
    Values values;
    for (index_t i = 0; i < n; ++i) values.push_back(source.normal(std::uint64_t(i)));
    return values;
  };
  const index_t block_rows = blocks * p.block_size();
  const Values q = random(1, block_rows * heads * dim), k = random(2, block_rows * kv * dim),
               v = random(3, block_rows * kv * dim), dy = random(4, block_rows * heads * dim),
               context_k = random(5, rows * kv * dim), context_v = random(6, rows * kv * dim);
  const auto run = [&](SequenceLayout layout, index_t window, Whole& whole) {
    on_ranks(p, layout, [&](B& cpu, Group& group, const Batch<B>& batch) {
      UlyssesAttention attention(cpu, group);
      AttentionRule rule{batch.mask(), {heads / kv, 0}, 0.4};
      rule.mask.window = window;
      const Range own = layout.blocks(group.rank(), blocks);
      std::vector<index_t> block_at, context_at;
      for (index_t row = own.begin * p.block_size(); row < own.end * p.block_size(); ++row)
        block_at.push_back(row);
      for (const Range& range : layout.context_ranges(group.rank(), rows))
        for (index_t row = range.begin; row < range.end; ++row) context_at.push_back(row);
      const auto tensor = [&](const Values& all, index_t count, const std::vector<index_t>& some) {
        const Values own_rows = rows_of(all, count * dim, some);
        Tensor<B, double, 3> t(cpu, {index_t(some.size()), count, dim});
        cpu.upload(own_rows.data(), t.view().data, t.size());
        return t;
      };
      const auto zeros = [&](index_t count, const std::vector<index_t>& some) {
        Tensor<B, double, 3> t(cpu, {index_t(some.size()), count, dim});
        fill(cpu, t.view(), 0.0);
        return t;
      };
      auto own_q = tensor(q, heads, block_at), own_k = tensor(k, kv, block_at),
           own_v = tensor(v, kv, block_at), own_dy = tensor(dy, heads, block_at),
           ck = tensor(context_k, kv, context_at), cv = tensor(context_v, kv, context_at);
      auto y = zeros(heads, block_at), dq = zeros(heads, block_at), dk = zeros(kv, block_at),
           dv = zeros(kv, block_at), dck = zeros(kv, context_at), dcv = zeros(kv, context_at);
      UlyssesAttention<B, ThreadCommunicator>::Context context;
      UlyssesAttention<B, ThreadCommunicator>::Saved saved;
      const auto put = [&](Tensor<B, double, 3>& t, HeadPlaces<double> places) {
        const auto rows = reshape<2>(t.view(), {t.view().shape[0], t.view().shape[1] * dim});
        for (const HeadPart<double>& part : places)
          copy_columns(cpu, In<double, 2>(rows), part.first * dim,
                       View<double, 2>{part.data, {rows.shape[0], part.count * dim}});
      };
      const HeadSizes sizes{heads, kv, dim};
      const auto keys = attention.open_context(index_t(context_at.size()), sizes, rule, context);
      put(ck, keys.k), put(cv, keys.v);
      attention.begin_context(rule, context);
      const auto places = attention.open(index_t(block_at.size()), sizes, rule, saved);
      put(own_q, places.q), put(own_k, places.k), put(own_v, places.v);
      attention.forward(rule, y.view(), context, saved);
      attention.backward(own_dy.view(), rule, context, saved, dq.view(), dk.view(), dv.view());
      attention.end_context(rule, context, dck.view(), dcv.view());
      const auto flat = [](View<double, 3> t) {
        return In<double, 2>(reshape<2>(t, {t.shape[0], t.shape[1] * t.shape[2]}));
      };
      for (const auto& [name, t] : {std::pair{"y", &y}, {"dq", &dq}, {"dk", &dk}, {"dv", &dv}})
        whole.add_blocks(name, group, blocks, p.block_size(), flat(t->view()));
      for (const auto& [name, t] :
           {std::pair{"dk of the context", &dck}, {"dv of the context", &dcv}})
        whole.add_context(name, group, rows, flat(t->view()));
    });
  };
  for (const index_t window : {index_t(0), index_t(20)}) {
    CAPTURE(window);
    Whole one;
    run({1, 1}, window, one);
    for (const SequenceLayout& layout : layouts) {
      Whole many;
      run(layout, window, many);
      check_equal(many, one);
    }
  }
}

TEST_CASE("No output of a block moves with what it must not see, on any layout, bit for bit") {
  Problem p;
  const auto blocks = all_blocks(p);
  const auto outputs = [&](SequenceLayout layout) {
    Whole whole;
    on_ranks(p, layout, [&](B& cpu, Group& group, const Batch<B>& batch) {
      UlyssesAttention attention(cpu, group);
      Model model(DFlashBlock(attention, p.config.shape), p.config);
      Model::Saved saved;
      model.forward(p.one.weights, p.one.embedding(), batch, saved);
      whole.add_blocks("output", group, batch.blocks_total, batch.block_size, saved.output.view());
    });
    return whole.values().at("output");
  };
  // Of the first sample: from row 100 on other features, from position 101 on other tokens.
  const std::vector<MemorySample> before = p.one.memory();
  const index_t width = p.config.feature_width(), from = 100;
  MemorySample changed = before[0];
  Values numbers(std::size_t(before[0].features->rows() * width));
  std::vector<float> features(numbers.size());
  changed.features->read({0, changed.features->rows()}, features.data());
  for (std::size_t i = std::size_t(from * width); i < features.size(); ++i) features[i] += 1;
  changed.features = std::make_shared<MemoryFeatures>(std::move(features), width);
  for (std::size_t t = std::size_t(from) + 1; t < changed.text.tokens.size(); ++t)
    changed.text.tokens[t] = (changed.text.tokens[t] + 1) % 17;
  for (const SequenceLayout& layout : layouts) {
    CAPTURE(layout.ulysses);
    CAPTURE(layout.ring);
    const Values first = outputs(layout);
    const auto samples = p.one.samples();
    const auto old_blocks = p.one.blocks();
    p.one.samples()[0] = changed;
    p.one.blocks()[0] = blocks_at(changed.text.tokens, changed.text.loss_mask,
                                  old_blocks[0].anchors, p.block_size());
    const Values second = outputs(layout);
    p.one.samples() = samples;
    p.one.blocks() = old_blocks;
    index_t still = 0, moved = 0;
    const auto size = std::size_t(p.block_size() * p.config.shape.hidden);
    for (std::size_t n = 0; n < blocks.size(); ++n) {
      const bool same =
          std::equal(first.begin() + index_t(n * size), first.begin() + index_t((n + 1) * size),
                     second.begin() + index_t(n * size));
      const bool may_move = blocks[n].sample == 0 && blocks[n].position > from;
      CHECK(same == !may_move);
      (same ? still : moved) += 1;
    }
    CHECK(still > 5);
    CHECK(moved > 1);
  }
}

}  // namespace parallel_stages_test
