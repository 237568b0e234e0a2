// Joins a kernel's own backward to PyTorch's autograd.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace graft::layers {

using Tensors = std::vector<at::Tensor>;

// Gradients of a call's inputs, in their order, from its saved tensors and the gradients of its
// outputs; those may be undefined, but not all of them.
using KernelBackward = std::function<Tensors(const Tensors& saved, const Tensors& grad_outputs)>;

// Whether grad mode is on and one of the inputs needs a gradient. Undefined tensors need none.
bool needs_gradient(std::initializer_list<const at::Tensor*> inputs);

// Makes `outputs`, which an op computed below autograd, functions of `inputs`.
//
// repository  the package, for errors
// inputs      undefined ones are absent; their gradients are dropped
// saved       what backward() reads; must not be among `outputs`
// Throws, when a second derivative is asked for,   IncompatibleError
// `layers.gradient.second-derivative`: kernels have none of their own and would cut the graph.
void record(const std::string& repository, const Tensors& outputs, const Tensors& inputs,
            const Tensors& saved, KernelBackward backward);

}  // namespace graft::layers
