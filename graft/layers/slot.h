// A slot is a place in a model where a kernel can be swapped in. It names its contract, holds the
// reference, and calls whichever is active. kernelize() finds slots by walking the module tree.
//
//   class MyNormImpl : public torch::nn::Module {
//     layers::Slot<layers::RmsNorm> norm_{*this, {RmsNormVariant::kCastBeforeWeight}};  // the one
//     line at::Tensor forward(const at::Tensor& x) { return norm_->forward(x, weight, eps); }
//   };
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <torch/nn/module.h>

#include "graft/layers/contract.h"

namespace graft::kernel {
struct LoadedKernel;
struct PackageLayer;
}  // namespace graft::kernel

namespace graft::layers {

class KernelSession;

// The part of a slot that does not depend on its contract. A child module without parameters, so
// that state_dict keys stay those of transformers.
class SlotModule : public torch::nn::Module {
 public:
  SlotModule(std::string layer_name, std::string variant_name);

  // The Hub's layer name, e.g. `RMSNorm`.
  const std::string& layer_name() const { return layer_name_; }
  // The numeric variant that this place of the model needs, e.g. `cast_before_weight`.
  const std::string& variant_name() const { return variant_name_; }
  // Puts the reference back; bit for bit the unswapped model.
  virtual void restore_reference() = 0;
  virtual bool swapped() const = 0;
  // Whether a kernel here does the work of other slots below the module that owns this one, which it declares
  // before them.
  virtual bool encloses() const = 0;
  // Whether the slot at `path`, as that module names it, is one of them.
  virtual bool encloses(std::string_view path) const = 0;
  // Binds the package's layer to this slot's contract, holds it against the reference, and swaps it
  // in. Throws what bind() throws, and IncompatibleError `layers.guard.refused`.
  virtual void swap_in(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
                       at::ScalarType dtype, at::Device device) = 0;

  // train() and eval() of a kernelized model select again.
  void train(bool on = true) override;
  void attach(std::shared_ptr<KernelSession> session) { session_ = std::move(session); }
  const std::shared_ptr<KernelSession>& session() const { return session_; }

 private:
  std::string layer_name_;
  std::string variant_name_;
  std::shared_ptr<KernelSession> session_;
};

template <typename Contract>
class ContractSlot final : public SlotModule {
 public:
  using Kernel = typename Contract::Kernel;

  explicit ContractSlot(const typename Contract::Spec& spec)
      : SlotModule(graft::layers::layer_name(spec), Contract::variant_name(spec)),
        spec_(spec),
        reference_(Contract::reference(spec)),
        active_(reference_) {}

  const typename Contract::Spec& spec() const { return spec_; }
  const Kernel& reference() const { return *reference_; }
  const Kernel& active() const { return *active_; }
  void swap(std::shared_ptr<const Kernel> kernel) { active_ = std::move(kernel); }
  void restore_reference() override { active_ = reference_; }
  bool swapped() const override { return active_ != reference_; }
  bool encloses() const override {
    return requires { Contract::kEncloses; };
  }
  bool encloses(std::string_view path) const override {
    if constexpr (requires { Contract::kParts; }) {
      return std::find(Contract::kParts.begin(), Contract::kParts.end(),
                       path.substr(0, path.find('.'))) != Contract::kParts.end();
    }
    return encloses();
  }
  void swap_in(const kernel::LoadedKernel& kernel, const kernel::PackageLayer& layer,
               at::ScalarType dtype, at::Device device) override;

 private:
  typename Contract::Spec spec_;
  std::shared_ptr<const Kernel> reference_;
  std::shared_ptr<const Kernel> active_;
};

// The member that a module declares; registers the slot as child module `name`.
template <typename Contract>
class Slot {
 public:
  Slot(torch::nn::Module& owner, const typename Contract::Spec& spec,
       const std::string& name = "kernel")
      : module_(owner.register_module(name, std::make_shared<ContractSlot<Contract>>(spec))) {}

  const typename Contract::Kernel* operator->() const { return &module_->active(); }
  ContractSlot<Contract>& module() const { return *module_; }

 private:
  std::shared_ptr<ContractSlot<Contract>> module_;
};

}  // namespace graft::layers
