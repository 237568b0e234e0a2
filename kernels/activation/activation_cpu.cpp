// Activations on the CPU: the instruction set is chosen at run time, elements are spread over
// ATen's threads.

#include "kernels/activation/activation_backward_ops.h"
#include "kernels/activation/swigluoai_ops.h"
#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"

namespace graft_kernels::activation {

namespace {

// Elements below which a second thread costs more than it saves.
constexpr int64_t kGrainElements = 1 << 14;

template <typename AnyProblem>
using AnySpanFunction = void (*)(const AnyProblem& problem, int64_t begin, int64_t end);

template <typename AnyProblem>
void run_spans(const AnyProblem& problem, AnySpanFunction<AnyProblem> span) {
  const int64_t elements = problem.rows * problem.columns;
  if (elements == 0) {
    return;
  }
  spread(elements, kGrainElements, [&](int64_t begin, int64_t end) { span(problem, begin, end); });
}

void run_cpu(const Problem& problem, const Tensor&) {
  run_spans(problem, choose_isa<SpanFunction>(plain::activation_span, avx2::activation_span,
                                              avx512::activation_span));
}

void run_backward_cpu(const BackwardProblem& problem, const Tensor&) {
  run_spans(problem, choose_isa<BackwardSpanFunction>(plain::activation_backward_span,
                                                      avx2::activation_backward_span,
                                                      avx512::activation_backward_span));
}

void run_swigluoai_cpu(const SwigluoaiProblem& problem, const Tensor&) {
  run_spans(problem, choose_isa<SwigluoaiSpanFunction>(plain::swigluoai_span, avx2::swigluoai_span,
                                                       avx512::swigluoai_span));
}

}  // namespace

using CpuOps = Ops<&run_cpu>;
using CpuBackwardOps = BackwardOps<&run_backward_cpu>;
using CpuSwigluoaiOps = SwigluoaiOps<&run_swigluoai_cpu>;

}  // namespace graft_kernels::activation

GRAFT_OPS_IMPL(CPU, ops) {
  graft_kernels::activation::CpuOps::implement(ops);
  graft_kernels::activation::CpuBackwardOps::implement(ops);
  graft_kernels::activation::CpuSwigluoaiOps::implement(ops);
}
