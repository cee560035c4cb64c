#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "dflash/core/bfloat16.hpp"
#include "dflash/core/error.hpp"
#include "dflash/core/float8.hpp"
#include "dflash/cuda/expects.hpp"
#include "dflash/cuda/gemm_shape.hpp"

namespace dflash {

/// Throws Error, naming the caller's line, unless the call succeeded.
inline void cublas_expects(cublasStatus_t status, const char* what,
                           const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(std::string(what) + ": " + cublasLtGetStatusString(status) + " (" + file + ":" +
                std::to_string(line) + ")");
}

namespace detail {

/// Owns one of cuBLASLt's descriptors.
template <class Handle, cublasStatus_t (*destroy)(Handle)>
class CublasOwner {
 public:
  CublasOwner() = default;
  CublasOwner(CublasOwner&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  CublasOwner& operator=(CublasOwner&& o) noexcept {
    std::swap(handle_, o.handle_);
    return *this;
  }
  ~CublasOwner() {
    if (handle_ != nullptr) destroy(handle_);
  }
  Handle* fresh() { return &handle_; }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using CublasProduct = CublasOwner<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using CublasLayout = CublasOwner<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using CublasPreference = CublasOwner<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;
using CublasHandle = CublasOwner<cublasLtHandle_t, cublasLtDestroy>;

template <class T>
constexpr cudaDataType_t cuda_type() {
  if (std::is_same_v<T, float8_e4m3>) return CUDA_R_8F_E4M3;
  return std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
}

}  // namespace detail

/// Every matrix product of the CUDA backend, by cuBLASLt: bfloat16, fp32 or float8_e4m3 in, summed
/// in fp32, fp32 products exact (no TF32), those of float8 without "fast accumulation". The
/// algorithm is chosen once per shape and kept.
class CudaGemm {
 public:
  explicit CudaGemm(cudaStream_t stream) : stream_(stream) {
    cublas_expects(cublasLtCreate(handle_.fresh()), "cuBLASLt");
    cuda_expects(cudaMalloc(&workspace_, workspace_bytes), "the workspace of cuBLASLt");
  }
  CudaGemm(const CudaGemm&) = delete;
  CudaGemm& operator=(const CudaGemm&) = delete;
  ~CudaGemm() {
    cudaStreamSynchronize(stream_);
    plans_.clear();
    cudaFree(workspace_);
  }

  template <class T, class Y>
  void multiply(const GemmShape& shape, const T* a, const T* b, Y* y) {
    static_assert(std::is_same_v<Y, float> || std::is_same_v<Y, T>);
    if constexpr (std::is_same_v<T, float8_e4m3>) shape.expect_float8(a, b);
    const float one = 1, scale = shape.add ? 1 : 0;
    if (shape.rows == 0 || shape.columns == 0) return;
    if (shape.depth == 0) {
      if (!shape.add)
        cuda_expects(
            cudaMemsetAsync(y, 0, sizeof(Y) * std::size_t(shape.rows * shape.columns), stream_),
            "a product without depth");
      return;
    }
    const Plan& plan = plan_for<T, Y>(shape, a, b, y);
    // cuBLASLt counts in columns: y^T = b^T a^T, so b comes first.
    cublas_expects(cublasLtMatmul(handle_.get(), plan.product.get(), &one, b, plan.b.get(), a,
                                  plan.a.get(), &scale, y, plan.y.get(), y, plan.y.get(),
                                  &plan.algorithm, workspace_, workspace_bytes, stream_),
                   "a matrix product");
  }

 private:
  struct Plan {
    detail::CublasProduct product;
    detail::CublasLayout a, b, y;
    cublasLtMatmulAlgo_t algorithm;
  };
  using Key =
      std::tuple<GemmShape, cudaDataType_t, cudaDataType_t, std::size_t, std::size_t, std::size_t>;

  static std::size_t alignment(const void* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    return std::min<std::size_t>(256, address & (~address + 1));
  }

  template <class T, class Y>
  const Plan& plan_for(const GemmShape& shape, const T* a, const T* b, const Y* y) {
    const auto in = detail::cuda_type<T>(), out = detail::cuda_type<Y>();
    const Key key{shape, in, out, alignment(a), alignment(b), alignment(y)};
    if (const auto found = plans_.find(key); found != plans_.end()) return found->second;
    // Numbers of rows that rarely come again, as prompts have, would fill the host's memory.
    if (plans_.size() >= most_plans) plans_.clear();
    return plans_.emplace(key, make_plan(shape, in, out, key)).first->second;
  }

  static void set_layout(detail::CublasLayout& layout, cudaDataType_t type, index_t rows,
                         index_t columns) {
    cublas_expects(cublasLtMatrixLayoutCreate(layout.fresh(), type, std::uint64_t(columns),
                                              std::uint64_t(rows), columns),
                   "a matrix layout");
  }

  Plan make_plan(const GemmShape& shape, cudaDataType_t in, cudaDataType_t out, const Key& key) {
    Plan plan;
    const auto compute = in == CUDA_R_32F ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    cublas_expects(cublasLtMatmulDescCreate(plan.product.fresh(), compute, CUDA_R_32F),
                   "a matrix product");
    const auto transpose = [&](cublasLtMatmulDescAttributes_t which, bool yes) {
      const cublasOperation_t how = yes ? CUBLAS_OP_T : CUBLAS_OP_N;
      cublas_expects(cublasLtMatmulDescSetAttribute(plan.product.get(), which, &how, sizeof how),
                     "a matrix product");
    };
    transpose(CUBLASLT_MATMUL_DESC_TRANSA, shape.b_transposed);
    transpose(CUBLASLT_MATMUL_DESC_TRANSB, shape.a_transposed);
    const auto lay = [&](detail::CublasLayout& layout, bool turned, index_t rows, index_t columns) {
      set_layout(layout, in, turned ? columns : rows, turned ? rows : columns);
    };
    lay(plan.a, shape.a_transposed, shape.rows, shape.depth);
    lay(plan.b, shape.b_transposed, shape.depth, shape.columns);
    set_layout(plan.y, out, shape.rows, shape.columns);
    plan.algorithm = choose(plan, key);
    return plan;
  }

  cublasLtMatmulAlgo_t choose(const Plan& plan, const Key& key) {
    detail::CublasPreference preference;
    cublas_expects(cublasLtMatmulPreferenceCreate(preference.fresh()), "an algorithm");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t which, auto value) {
      cublas_expects(
          cublasLtMatmulPreferenceSetAttribute(preference.get(), which, &value, sizeof value),
          "an algorithm");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t(workspace_bytes));
    // Parts of the depth are added up in fp32, not in y's type.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           std::uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, std::uint32_t(std::get<4>(key)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, std::uint32_t(std::get<3>(key)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, std::uint32_t(std::get<5>(key)));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, std::uint32_t(std::get<5>(key)));
    cublasLtMatmulHeuristicResult_t best;
    int found = 0;
    cublas_expects(cublasLtMatmulAlgoGetHeuristic(handle_.get(), plan.product.get(), plan.b.get(),
                                                  plan.a.get(), plan.y.get(), plan.y.get(),
                                                  preference.get(), 1, &best, &found),
                   "an algorithm");
    expects(found == 1 && best.state == CUBLAS_STATUS_SUCCESS,
            "cuBLASLt has no algorithm for a matrix product");
    return best.algo;
  }

  static constexpr std::size_t workspace_bytes = std::size_t(32) << 20, most_plans = 4096;

  cudaStream_t stream_;
  detail::CublasHandle handle_;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace dflash
