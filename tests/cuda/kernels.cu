// Every kernel of the library, for each type: compiled to see that nvcc accepts them without a
// warning, and what they need (nvcc.sh).

#include "dflash/cuda.cuh"

namespace dflash {
namespace {

template <class T>
struct Arguments {
  CudaBackend<T>& backend;
  View<T, 2> matrix;
  View<T, 1> row;
  View<T, 3> heads;
  View<float, 1> sums;
  View<float, 2> sum_matrix;
  View<std::int32_t, 1> ids;
  View<std::uint8_t, 1> flags;
  View<const double, 1> frequency;
  View<const index_t, 1> position;
  View<CrossEntropyPart<float>, 1> part;
  KeyValue<T> kv;
  AttentionRule rule;
};

template <class T>
void row_by_row(const Arguments<T>& a) {
  auto& b = a.backend;
  fill(b, a.matrix, T(0));
  fill(b, a.sums, 0.0f);
  add(b, a.matrix, a.matrix);
  add_rows<T>(b, a.row, a.matrix);
  scale_rows<T>(b, a.sums, a.matrix);
  sum_rows<T>(b, a.matrix, a.sums);
  gather_rows<T>(b, a.matrix, a.ids, a.matrix);
  scatter_rows<T>(b, a.matrix, a.ids, a.matrix);
  copy_columns<T>(b, a.matrix, 0, a.matrix);
  add_columns<T>(b, a.matrix, 0, a.matrix);
  convert(b, a.matrix, a.sum_matrix);
  convert(b, a.sum_matrix, a.matrix);
  rms_norm<T>(b, a.matrix, a.row, 1e-6f, a.matrix, a.sums);
  rms_norm_backward<T>(b, a.matrix, a.row, a.sums, a.matrix, a.matrix, a.sums);
  rope_table<T>(b, a.position, a.frequency, 1, a.matrix, a.matrix);
  rope<T>(b, a.matrix, a.matrix, Rotate::forward, a.heads);
  const HeadPart<T> part = {a.heads.data, 0, 1};
  rms_norm_rope<T>(b, a.heads, a.row, 1e-6f, a.matrix, a.matrix, {&part, 1}, a.sums);
  rms_norm_rope_backward<T>(b, a.heads, a.row, a.sums, a.matrix, a.matrix, a.heads, a.heads,
                            a.sums);
  swiglu<T>(b, a.matrix, a.matrix, a.matrix);
  swiglu_backward<T>(b, a.matrix, a.matrix, a.matrix, a.matrix, a.matrix);
  argmax_rows<T>(b, a.matrix, a.ids);
}

template <class T>
void others(const Arguments<T>& a) {
  auto& b = a.backend;
  const auto frozen = freeze<T>(b, a.matrix);
  linear<T>(b, a.matrix, frozen, a.matrix);
  linear<T>(b, a.matrix, freeze_int8<T>(b, a.matrix), a.matrix);
  linear_backward_input<T>(b, a.matrix, a.matrix, a.matrix);
  linear_backward_weight<T>(b, a.matrix, a.matrix, a.sum_matrix);
  attention<T>(b, a.heads, a.kv, a.rule, a.heads, a.sum_matrix);
  head_dots<T>(b, a.heads, a.heads, a.sum_matrix);
  attention_backward<T>(b, a.heads, a.kv, a.rule, a.sum_matrix, a.sum_matrix, a.heads, a.heads,
                        a.kv);
  merge_attention<T>(b, a.heads, a.sum_matrix, 0, a.heads, a.sum_matrix);
  linear_cross_entropy<T>(b, a.matrix, a.matrix, a.ids, a.sums, a.flags, a.matrix);
  linear_cross_entropy_part<T>(b, a.matrix, a.matrix, a.ids, a.part, a.matrix);
  linear_cross_entropy_merge<T>(b, a.matrix, a.ids, a.sums, a.sums, a.matrix);
  const auto float8 = float8_head<T>(b, a.matrix);
  linear_cross_entropy<T>(b, a.matrix, float8, a.ids, a.sums, a.flags, a.matrix);
  linear_cross_entropy_part<T>(b, a.matrix, float8, a.ids, a.part, a.matrix);
  sum_of_squares<T>(b, a.sums);
  adamw<T>(b, a.sums, {}, a.sums, a.sums, a.sums);
  adamw<T>(b, a.sums, {}, a.sums, a.sums, a.sums, a.row);
}

}  // namespace

void use(const Arguments<float>& a) { row_by_row(a), others(a); }
void use(const Arguments<bfloat16>& a) { row_by_row(a), others(a); }

}  // namespace dflash
