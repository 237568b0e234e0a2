// The append of one token a row on the CPU: a rotation of one token each, with its norm or without, written straight
// into the cache.

#include <cstring>

#include "kernels/rotary/norm_rotary_ops.h"
#include "kernels/rotary/rotary_cpu.h"

namespace graft_kernels::rotary {

namespace {

template <typename Pointer>
Pointer moved(Pointer pointer, int64_t elements, int64_t element_bytes) {
  if constexpr (std::is_const_v<std::remove_pointer_t<Pointer>>) {
    return static_cast<const char*>(pointer) + elements * element_bytes;
  } else {
    return static_cast<char*>(pointer) + elements * element_bytes;
  }
}

// The rotation of row `batch` alone.
Problem row_problem(const AppendProblem& problem, int64_t batch, int64_t place, int64_t bytes) {
  Problem row = problem.base;
  row.batch = 1;
  for (Heads& heads : row.heads) {
    heads.in = moved(heads.in, batch * heads.in_stride[0], bytes);
    heads.out = moved(heads.out, batch * heads.out_stride[0], bytes);
  }
  row.heads[1].out = moved(row.heads[1].out, place * problem.key_place_stride, bytes);
  const int64_t table_bytes = row.float_tables ? 4 : bytes, position = problem.positions[batch];
  row.cos.data = moved(row.cos.data, position * problem.table_stride[0], table_bytes);
  row.sin.data = moved(row.sin.data, position * problem.table_stride[1], table_bytes);
  return row;
}

void run_cpu(const AppendProblem& problem, const Tensor&) {
  const Problem& base = problem.base;
  const int64_t bytes = base.dtype == Dtype::kFloat32 ? 4 : 2;
  if (base.head_dim == 0 || base.heads[0].count + base.heads[1].count == 0) {
    return;
  }
  const auto run = tokens_function(base);
  for (int64_t batch = 0; batch < base.batch; ++batch) {
    const int64_t place = problem.lengths[batch] - int64_t{1}, position = problem.positions[batch];
    if (place < 0 || place >= problem.places || position < 0 || position >= problem.table_rows) {
      continue;
    }
    run(row_problem(problem, batch, place, bytes), 0, 1);
    for (int64_t head = 0; head < base.heads[1].count; ++head) {
      const int64_t from = batch * problem.value_stride[0] + head * problem.value_stride[1];
      const int64_t to = batch * problem.values_stride[0] + head * problem.values_stride[1] +
                         place * problem.values_stride[2];
      std::memcpy(moved(problem.values, to, bytes), moved(problem.value, from, bytes),
                  static_cast<size_t>(base.head_dim * bytes));
    }
  }
}

}  // namespace

using CpuAppendOps = AppendOps<&run_cpu>;
using CpuNormAppendOps = NormAppendOps<&run_cpu>;

}  // namespace graft_kernels::rotary

GRAFT_OPS_IMPL(CPU, ops) {
  graft_kernels::rotary::CpuAppendOps::implement(ops);
  graft_kernels::rotary::CpuNormAppendOps::implement(ops);
}
