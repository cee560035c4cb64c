#include <omp.h>

#include <dnnl.hpp>
#include <map>
#include <tuple>
#include <vector>

#include "rivals/rival.hpp"

namespace {

using namespace dflash_benchmark;

void multiply(const Product<float>& p) {
  dnnl_sgemm(p.a_transposed ? 'T' : 'N', p.b_transposed ? 'T' : 'N', p.rows, p.columns, p.k, 1, p.a,
             p.a_row(), p.b, p.b_row(), float(p.add), p.c, p.columns);
}

struct Processor {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
};
Processor& processor() {
  static Processor one;
  return one;
}

struct Matmul {
  dnnl::memory::desc a, b, c;
  dnnl::matmul primitive;
};

/// Making a primitive takes longer than many a product: they are kept.
const Matmul& matmul_of(const dnnl::engine& engine, const Product<bfloat16>& p) {
  using Key = std::tuple<bool, bool, bool, index_t, index_t, index_t, int>;
  static std::map<Key, Matmul> made;
  const Key key{p.a_transposed,       p.b_transposed, p.add, p.rows, p.columns, p.k,
                omp_get_max_threads()};
  const auto found = made.find(key);
  if (found != made.end()) return found->second;
  using dnnl::memory;
  const auto desc = [](index_t rows, index_t columns, memory::data_type type, bool transposed) {
    return memory::desc({rows, columns}, type,
                        transposed ? memory::dims{1, rows} : memory::dims{columns, 1});
  };
  Matmul m;
  m.a = desc(p.rows, p.k, memory::data_type::bf16, p.a_transposed);
  m.b = desc(p.k, p.columns, memory::data_type::bf16, p.b_transposed);
  m.c = desc(p.rows, p.columns, memory::data_type::f32, false);
  dnnl::primitive_attr attributes;
  dnnl::post_ops sum;
  if (p.add) sum.append_sum(1.0f);
  attributes.set_post_ops(sum);
  m.primitive = dnnl::matmul(
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(m.a, m.b, m.c), attributes, engine));
  return made.emplace(key, std::move(m)).first->second;
}

void multiply_bf16(const Product<bfloat16>& p) {
  auto& [engine, stream] = processor();
  const Matmul& m = matmul_of(engine, p);
  m.primitive.execute(stream,
                      {{DNNL_ARG_SRC, dnnl::memory(m.a, engine, const_cast<bfloat16*>(p.a))},
                       {DNNL_ARG_WEIGHTS, dnnl::memory(m.b, engine, const_cast<bfloat16*>(p.b))},
                       {DNNL_ARG_DST, dnnl::memory(m.c, engine, p.c)}});
  stream.wait();
}

/// n floats rounded by oneDNN's own reorder.
void round(const float* from, index_t n, bfloat16* to) {
  auto& [engine, stream] = processor();
  static std::map<index_t, dnnl::reorder> made;
  using dnnl::memory;
  const memory::desc floats({n}, memory::data_type::f32, memory::dims{1}),
      rounded({n}, memory::data_type::bf16, memory::dims{1});
  auto found = made.find(n);
  if (found == made.end())
    found = made.emplace(n, dnnl::reorder({engine, floats, engine, rounded})).first;
  memory source(floats, engine, const_cast<float*>(from)), result(rounded, engine, to);
  found->second.execute(stream, source, result);
  stream.wait();
}

void multiply_rounded(const Product<float>& p) {
  static std::vector<bfloat16> a, b;
  a.resize(std::size_t(p.rows * p.k));
  b.resize(std::size_t(p.k * p.columns));
  round(p.a, p.rows * p.k, a.data());
  round(p.b, p.k * p.columns, b.data());
  multiply_bf16(
      {p.a_transposed, p.b_transposed, p.add, p.rows, p.columns, p.k, a.data(), b.data(), p.c});
}

const Enter enter({"oneDNN", omp_set_num_threads, multiply, multiply_bf16, multiply_rounded});

}  // namespace
